"""What thousands of queues, workers and nodes cost: measured on one machine, and predicted for more by a model."""
