-- For wrk: POST one job of 100 bytes a request; the summary as one line of JSON.
wrk.method = "POST"
wrk.path = "/jobs/enqueue"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"type":"email","payload":{"to":"user@example.com","x":"' .. string.rep("y", 60) .. '"}}'

function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '{"requests":%d,"seconds":%.6f,"failed":%d,"p50_ms":%.3f,"p99_ms":%.3f}\n',
        summary.requests, summary.duration / 1e6,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
