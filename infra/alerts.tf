# Everything that wakes somebody, or tells them in the morning. Thresholds: warning and critical; each links to its page of the runbook.

locals {
  run      = "{monitored_resource=\"cloud_run_revision\"}"
  services = "monitored_resource=\"cloud_run_revision\""
  # An agent thinks for as long as its model does: only the others are held to seconds.
  quick = join("|", [for name in sort(keys(local.functions)) : local.service_names[name] if !contains(local.agents, name) && name != "webhook"])

  # value: what is compared, in PromQL. for: how long it must stay above.
  alerts = {
    "error-rate" = {
      title = "Error rate"
      value = "100 * sum(rate(run_googleapis_com:request_count{${local.services},response_code_class=\"5xx\"}[5m])) / sum(rate(run_googleapis_com:request_count{${local.services}}[5m]))"
      unit  = "% of requests"
      for   = "300s"
      over  = { warning = 5, critical = 10 }
    }
    "latency" = {
      title = "Latency, 95th percentile"
      value = "1000 * histogram_quantile(0.95, sum by (le) (rate(logging_googleapis_com:user_agent_team_answer_seconds_bucket{${local.services},service_name=~\"${local.quick}\"}[5m])))"
      unit  = "ms"
      for   = "300s"
      over  = { warning = 2000, critical = 5000 }
    }
    "cpu" = {
      title = "CPU"
      value = "100 * histogram_quantile(0.95, sum by (le, service_name) (rate(run_googleapis_com:container_cpu_utilizations_bucket{${local.services}}[5m])))"
      unit  = "% of a service's CPU"
      for   = "600s"
      over  = { warning = 70, critical = 85 }
    }
    "memory" = {
      title = "Memory"
      value = "100 * histogram_quantile(0.95, sum by (le, service_name) (rate(run_googleapis_com:container_memory_utilizations_bucket{${local.services}}[5m])))"
      unit  = "% of a service's memory"
      for   = "600s"
      over  = { warning = 75, critical = 90 }
    }
    "rate-limit" = {
      title = "Calls put off by a rate limit"
      value = "60 * sum(rate(${local.promql["ai.rate_limit.denied"]}_sum${local.run}[5m]))"
      unit  = "a minute"
      for   = "300s"
      over  = { warning = 10, critical = 50 }
    }
    "dead-letters" = {
      title = "Dead letters"
      value = "sum(increase(${local.promql["dead_letter.count"]}_sum${local.run}[1h]))"
      unit  = "in an hour"
      for   = "0s"
      over  = { warning = 0, critical = 20 }
    }
    "dead-letter-depth" = {
      title = "Dead letters that cannot be recorded"
      value = "sum(pubsub_googleapis_com:subscription_num_undelivered_messages{monitored_resource=\"pubsub_subscription\",subscription_id=\"${local.dead_letters}.dead_letter\"})"
      unit  = "messages"
      for   = "600s"
      over  = { warning = 0, critical = 100 }
    }
    "oldest-unacked" = {
      title = "Oldest message that nobody took"
      # A webhook's receiver that is away is tried for 16 hours: nobody here can mend it.
      value = "max(pubsub_googleapis_com:subscription_oldest_unacked_message_age{monitored_resource=\"pubsub_subscription\",subscription_id!=\"workflow-results.webhook\"})"
      unit  = "seconds"
      for   = "300s"
      over  = { warning = 900, critical = 3600 }
    }
    "workflow-failures" = {
      title = "Workflows that failed"
      # Where none succeeded there is nothing to add: without the 0 the sum would be nothing, and nobody told that all of them failed.
      value = "100 * sum(rate(${local.promql["workflow.failed"]}_sum${local.run}[30m])) / (sum(rate(${local.promql["workflow.failed"]}_sum${local.run}[30m])) + (sum(rate(${local.promql["workflow.succeeded"]}_sum${local.run}[30m])) or vector(0)))"
      unit  = "% of those that ended"
      for   = "600s"
      over  = { warning = 10, critical = 30 }
    }
    "rejected-envelopes" = {
      title = "Messages that were not trusted"
      value = "60 * sum(rate(${local.promql["envelope.rejected"]}_sum${local.run}[5m]))"
      unit  = "a minute"
      for   = "300s"
      over  = { warning = 1, critical = 10 }
    }
    "guards-outage" = {
      title = "Guards without their store"
      value = "sum(increase(${local.promql["guards.outage"]}_sum${local.run}[10m]))"
      unit  = "in ten minutes"
      for   = "0s"
      over  = { warning = 0, critical = 5 }
    }
    "key-age" = {
      title = "Age of the signing key"
      value = "max(max_over_time((logging_googleapis_com:user_agent_team_key_age_days_sum${local.run} / logging_googleapis_com:user_agent_team_key_age_days_count${local.run})[2d:1h]))"
      unit  = "days"
      for   = "0s"
      over  = { warning = 90, critical = 100 }
    }
    "model-spend" = {
      title = "Spend on models"
      value = "sum(increase(${local.promql["ai.cost_microdollars"]}_sum${local.run}[1d])) / 1e6"
      unit  = "dollars a day"
      for   = "0s"
      over  = { warning = var.ai_budget_usd_per_day, critical = 2 * var.ai_budget_usd_per_day }
    }
  }

  alert_levels = merge([
    for name, alert in local.alerts : {
      for level, threshold in alert.over : "${name}/${level}" => merge(alert, { name = name, level = level, threshold = threshold })
    }
  ]...)

  channels = {
    warning  = [google_monitoring_notification_channel.email.id]
    critical = concat([google_monitoring_notification_channel.email.id], var.pager_channels)
  }
}

resource "google_monitoring_notification_channel" "email" {
  display_name = "Agent team, on call"
  type         = "email"
  labels       = { email_address = var.alert_email }
}

resource "google_monitoring_alert_policy" "alert" {
  for_each = local.alert_levels

  display_name          = "${each.value.title}: ${each.value.level}"
  combiner              = "OR"
  severity              = upper(each.value.level)
  notification_channels = local.channels[each.value.level]

  conditions {
    display_name = "${each.value.title} above ${each.value.threshold} ${each.value.unit}"

    condition_prometheus_query_language {
      query               = "${each.value.value} > ${each.value.threshold}"
      duration            = each.value.for
      evaluation_interval = "60s"
      # A metric is there once something was counted.
      disable_metric_validation = true
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "${each.value.title} is above ${each.value.threshold} ${each.value.unit}."

    links {
      display_name = "Runbook"
      url          = "${var.runbook_url}#alert-${each.value.name}"
    }
  }

  user_labels = { alert = each.value.name, level = each.value.level }

  depends_on = [google_logging_metric.metric, google_logging_metric.key_age, google_logging_metric.answer]
}

# In a row: as many checks as minutes.
resource "google_monitoring_alert_policy" "health" {
  for_each = { warning = 2, critical = 5 }

  display_name          = "Health checks: ${each.key}"
  combiner              = "OR"
  severity              = upper(each.key)
  notification_channels = local.channels[each.key]

  conditions {
    display_name = "${each.value} health checks failed in a row"

    condition_threshold {
      filter          = "metric.type=\"monitoring.googleapis.com/uptime_check/check_passed\" AND resource.type=\"uptime_url\" AND metric.labels.check_id=\"${google_monitoring_uptime_check_config.ready.uptime_check_id}\""
      comparison      = "COMPARISON_GT"
      threshold_value = 1
      duration        = "${60 * each.value}s"

      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = "ALIGN_NEXT_OLDER"
        cross_series_reducer = "REDUCE_COUNT_FALSE"
        group_by_fields      = ["resource.label.host"]
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "The gateway, or something that it stands on, did not answer ${each.value} times in a row."

    links {
      display_name = "Runbook"
      url          = "${var.runbook_url}#alert-health"
    }
  }

  user_labels = { alert = "health", level = each.key }
}

resource "google_monitoring_alert_policy" "backup" {
  for_each = { warning = 26, critical = 50 }

  display_name          = "Backup: ${each.key}"
  combiner              = "OR"
  severity              = upper(each.key)
  notification_channels = local.channels[each.key]

  conditions {
    display_name = "No backup for ${each.value} hours"

    # Absence can be asked for over a day at most, so the sum over the time is asked for instead.
    condition_prometheus_query_language {
      query                     = "(sum(increase(logging_googleapis_com:user_agent_team_backup_done{monitored_resource=\"cloud_run_job\"}[${each.value}h])) or vector(0)) < 1"
      duration                  = "0s"
      evaluation_interval       = "300s"
      disable_metric_validation = true
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "No dump of the database was written and verified for ${each.value} hours."

    links {
      display_name = "Runbook"
      url          = "${var.runbook_url}#alert-backup"
    }
  }

  user_labels = { alert = "backup", level = each.key }

  depends_on = [google_logging_metric.backup_done]
}

resource "google_billing_budget" "monthly" {
  count = var.billing_account == "" ? 0 : 1

  billing_account = var.billing_account
  display_name    = "Agent team, ${var.environment}"

  budget_filter {
    projects        = ["projects/${data.google_project.this.number}"]
    calendar_period = "MONTH"
  }

  amount {
    specified_amount {
      currency_code = "USD"
      units         = tostring(floor(var.monthly_budget_usd))
    }
  }

  dynamic "threshold_rules" {
    for_each = { "0.5" = "CURRENT_SPEND", "0.9" = "CURRENT_SPEND", "1.0" = "FORECASTED_SPEND" }

    content {
      threshold_percent = tonumber(threshold_rules.key)
      spend_basis       = threshold_rules.value
    }
  }

  all_updates_rule {
    monitoring_notification_channels = [google_monitoring_notification_channel.email.id]
  }
}
