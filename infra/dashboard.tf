# One look: is work done, how fast, at what cost, and what stands in its way.

locals {
  charts = [
    { title = "Workflows that ended, a minute", queries = [for state in ["succeeded", "failed", "cancelled"] : "60 * sum(rate(${local.promql["workflow.${state}"]}_sum${local.run}[5m]))"] },
    { title = "Workflows in the queue", queries = ["max(max_over_time((${local.promql["workflow.queued"]}_sum${local.run} / ${local.promql["workflow.queued"]}_count${local.run})[5m:1m]))"] },
    { title = "Steps by agent, a minute", queries = ["60 * sum by (task) (rate(${local.promql["task.success"]}_sum${local.run}[5m]))", "60 * sum by (task, error) (rate(${local.promql["task.failure"]}_sum${local.run}[5m]))"] },
    { title = "Time of a step, 95th percentile, ms", queries = ["histogram_quantile(0.95, sum by (le, task) (rate(${local.promql["task.duration_ms"]}_bucket${local.run}[5m])))"] },
    { title = "Error rate, %", queries = [local.alerts["error-rate"].value] },
    { title = "Latency, 95th percentile, ms", queries = [local.alerts["latency"].value] },
    { title = "Calls of models, a minute", queries = ["60 * sum by (model, outcome) (rate(${local.promql["ai.requests"]}_sum${local.run}[5m]))"] },
    { title = "Spend on models, dollars a day", queries = [local.alerts["model-spend"].value] },
    { title = "Tokens, a minute", queries = ["60 * sum by (model, type) (rate(${local.promql["ai.tokens"]}_sum${local.run}[5m]))"] },
    { title = "Put off by rate limits, a minute", queries = [local.alerts["rate-limit"].value] },
    { title = "Oldest unacknowledged message, s", queries = ["max by (subscription_id) (pubsub_googleapis_com:subscription_oldest_unacked_message_age{monitored_resource=\"pubsub_subscription\"})"] },
    { title = "Dead letters, an hour", queries = [local.alerts["dead-letters"].value] },
    { title = "Instances", queries = ["sum by (service_name) (run_googleapis_com:container_instance_count${local.run})"] },
    { title = "CPU, %", queries = [local.alerts["cpu"].value] },
  ]
}

resource "google_monitoring_dashboard" "platform" {
  dashboard_json = jsonencode({
    displayName = "Agent team"
    mosaicLayout = {
      columns = 12
      tiles = [
        for index, chart in local.charts : {
          xPos   = index % 2 * 6
          yPos   = floor(index / 2) * 4
          width  = 6
          height = 4
          widget = {
            title   = chart.title
            xyChart = { dataSets = [for query in chart.queries : { plotType = "LINE", timeSeriesQuery = { prometheusQuery = query } }] }
          }
        }
      ]
    }
  })
}
