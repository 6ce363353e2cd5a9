# What instances tell in their log, since one that scales to zero cannot be asked (docs/metrics.md). The table is the one of
# shared/telemetry/metrics.py: a test compares them.

locals {
  metrics = {
    "ai.breaker.state"           = ["model"]
    "ai.cache.hit"               = []
    "ai.cost_microdollars"       = ["model"]
    "ai.fallback"                = ["from", "to", "reason"]
    "ai.rate_limit.denied"       = ["model"]
    "ai.rate_limit.wait_ms"      = ["model"]
    "ai.requests"                = ["model", "outcome"]
    "ai.requests_per_second"     = ["model"]
    "ai.tokens"                  = ["model", "type"]
    "bus.backlog"                = ["subscription"]
    "bus.oldest_unacked_seconds" = ["subscription"]
    "dead_letter.count"          = []
    "dead_letter.redriven"       = []
    "delivery.duplicate"         = []
    "envelope.rejected"          = ["reason"]
    "guards.outage"              = ["guard"]
    "retention.purged"           = ["kind"]
    "step.deferred"              = []
    "step.lease_expired"         = []
    "step.retried"               = []
    "task.duration_ms"           = ["task"]
    "task.failure"               = ["task", "error"]
    "task.success"               = ["task"]
    "webhook.sent"               = ["outcome"]
    "workflow.cancelled"         = ["workflow"]
    "workflow.execution_ms"      = ["workflow"]
    "workflow.failed"            = ["workflow"]
    "workflow.queued"            = []
    "workflow.started"           = ["workflow"]
    "workflow.succeeded"         = ["workflow"]
  }

  # As PromQL knows them: `logging.googleapis.com/user/agent-team/task.failure`, of which `_sum` is what was counted.
  promql = {
    for name in keys(local.metrics) : name => "logging_googleapis_com:user_agent_team_${replace(name, ".", "_")}"
  }
}

resource "google_logging_metric" "metric" {
  for_each = local.metrics

  name            = "agent-team/${each.key}"
  description     = "The metric ${each.key} of docs/metrics.md."
  filter          = "resource.type=\"cloud_run_revision\" AND jsonPayload.message=\"metric\" AND jsonPayload.metric=\"${each.key}\""
  value_extractor = "EXTRACT(jsonPayload.value)"

  label_extractors = { for label in each.value : label => "EXTRACT(jsonPayload.labels.${label})" }

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "DISTRIBUTION"
    unit        = "1"

    dynamic "labels" {
      for_each = each.value

      content {
        key        = labels.value
        value_type = "STRING"
      }
    }
  }

  # From 1 to 10^9 by factors of 2: milliseconds, tokens and millionths of a dollar alike.
  bucket_options {
    exponential_buckets {
      num_finite_buckets = 30
      growth_factor      = 2
      scale              = 1
    }
  }
}

# What is done outside of the functions is noted by the jobs themselves.
resource "google_logging_metric" "backup_done" {
  name        = "agent-team/backup.done"
  description = "Backups that were written and verified."
  filter      = "resource.type=\"cloud_run_job\" AND jsonPayload.message=\"backup done\""

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
    unit        = "1"
  }
}

resource "google_logging_metric" "key_age" {
  name            = "agent-team/key.age_days"
  description     = "Age of the signing key in use, as the key rotator sees it every day."
  filter          = "resource.type=\"cloud_run_revision\" AND jsonPayload.message=\"signing key\""
  value_extractor = "EXTRACT(jsonPayload.ageDays)"

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "DISTRIBUTION"
    unit        = "d"
  }
}

# How long the functions take to answer, as Cloud Run's own log of requests has it. Its metric knows no paths, and a stream of events
# lasts as long as somebody watches.
resource "google_logging_metric" "answer" {
  name            = "agent-team/answer.seconds"
  description     = "Time until a request was answered, without streams of events."
  filter          = "resource.type=\"cloud_run_revision\" AND log_id(\"run.googleapis.com/requests\") AND httpRequest.latency:* AND NOT httpRequest.requestUrl=~\"/v1/workflows/[^/]+/events\""
  value_extractor = "REGEXP_EXTRACT(httpRequest.latency, \"([0-9.]+)s\")"

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "DISTRIBUTION"
    unit        = "s"
  }

  # From a millisecond to an hour.
  bucket_options {
    exponential_buckets {
      num_finite_buckets = 44
      growth_factor      = 1.4142135623730951
      scale              = 0.001
    }
  }
}
