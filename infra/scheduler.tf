# What time sets off: functions by HTTP, workflows by a message.

resource "google_service_account" "scheduler" {
  account_id   = "scheduler"
  display_name = "Cloud Scheduler calls timed functions and starts jobs"
}

resource "google_cloud_run_v2_service_iam_member" "scheduler" {
  for_each = local.timers

  name     = google_cloud_run_v2_service.function[each.key].name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.scheduler.member
}

resource "google_cloud_scheduler_job" "timer" {
  for_each = local.timers

  name             = "call-${local.service_names[each.key]}"
  description      = local.functions[each.key].description
  schedule         = each.value
  time_zone        = "Etc/UTC"
  attempt_deadline = "${local.functions[each.key].timeout_seconds}s"

  http_target {
    http_method = "POST"
    uri         = google_cloud_run_v2_service.function[each.key].uri

    oidc_token {
      service_account_email = google_service_account.scheduler.email
      audience              = google_cloud_run_v2_service.function[each.key].uri
    }
  }

  # The next minute brings the next one.
  retry_config {
    retry_count = 0
  }
}

resource "google_cloud_scheduler_job" "workflow" {
  for_each = local.schedules

  name        = "workflow-${each.key}"
  description = "Starts the workflow ${each.key}."
  schedule    = each.value
  time_zone   = "Etc/UTC"

  pubsub_target {
    topic_name = google_pubsub_topic.topic["workflow-schedules"].id
    data       = base64encode(jsonencode({ workflow = each.key }))
  }

  retry_config {
    retry_count = 3
  }
}
