# What is asked from outside, and the promise that is kept by it.

resource "google_monitoring_uptime_check_config" "ready" {
  display_name       = "Gateway is ready"
  period             = "60s"
  timeout            = "10s"
  log_check_failures = true

  http_check {
    path         = "/health/ready"
    port         = 443
    use_ssl      = true
    validate_ssl = true

    accepted_response_status_codes {
      status_value = 200
    }
  }

  monitored_resource {
    type = "uptime_url"

    labels = {
      project_id = var.project_id
      host       = var.domain
    }
  }
}

resource "google_monitoring_custom_service" "platform" {
  service_id   = "agent-team"
  display_name = "Agent team"
}

locals {
  requests = "metric.type=\"run.googleapis.com/request_count\" resource.type=\"cloud_run_revision\" resource.labels.service_name=\"${local.service_names["gateway"]}\""
}

resource "google_monitoring_slo" "availability" {
  service             = google_monitoring_custom_service.platform.service_id
  slo_id              = "availability"
  display_name        = "99.5 % of the API's requests are answered without an error of ours, over 28 days"
  goal                = 0.995
  rolling_period_days = 28

  request_based_sli {
    good_total_ratio {
      total_service_filter = local.requests
      bad_service_filter   = "${local.requests} metric.labels.response_code_class=\"5xx\""
    }
  }
}

# Multi-window burn rates of the SRE workbook (https://sre.google/workbook/alerting-on-slos/): 2 % of the budget in an hour pages, 10 % in a day tells.
resource "google_monitoring_alert_policy" "burn_rate" {
  for_each = {
    critical = { rate = 14.4, long = "3600s", short = "300s" }
    warning  = { rate = 3, long = "86400s", short = "7200s" }
  }

  display_name          = "Error budget: ${each.key}"
  combiner              = "AND"
  severity              = upper(each.key)
  notification_channels = local.channels[each.key]

  dynamic "conditions" {
    for_each = [each.value.long, each.value.short]

    content {
      display_name = "Burnt ${each.value.rate} times too fast over ${conditions.value}"

      condition_threshold {
        filter          = "select_slo_burn_rate(\"${google_monitoring_slo.availability.id}\", \"${conditions.value}\")"
        comparison      = "COMPARISON_GT"
        threshold_value = each.value.rate
        duration        = "0s"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "At this rate the error budget of 28 days does not last."

    links {
      display_name = "Runbook"
      url          = "${var.runbook_url}#alert-error-budget"
    }
  }

  user_labels = { alert = "error-budget", level = each.key }
}
