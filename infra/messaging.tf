# Topics, who may publish to them, and the push subscriptions that bring their messages to the functions.

locals {
  dead_letters = "dead-letters"

  # A message never outlives the memory of its claim (COMM_IDEMPOTENCY_TTL_SEC).
  envelope_lifetime = "86400s"
}

data "google_project" "this" {
  project_id = var.project_id
}

locals {
  pubsub_agent = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-pubsub.iam.gserviceaccount.com"
}

resource "google_pubsub_topic" "topic" {
  for_each = local.topics

  name                       = each.key
  message_retention_duration = local.envelope_lifetime

  message_storage_policy {
    allowed_persistence_regions = [var.region]
  }
}

resource "google_pubsub_topic_iam_member" "publisher" {
  for_each = local.publishers

  topic  = google_pubsub_topic.topic[each.value.topic].id
  role   = "roles/pubsub.publisher"
  member = google_service_account.function[each.value.function].member
}

# In whose name Pub/Sub calls the functions: it may do nothing else.
resource "google_service_account" "pusher" {
  account_id   = "pubsub-pusher"
  display_name = "Pub/Sub pushes to the functions"
}

resource "google_service_account_iam_member" "pusher_tokens" {
  service_account_id = google_service_account.pusher.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = local.pubsub_agent
}

resource "google_cloud_run_v2_service_iam_member" "pusher" {
  for_each = toset([for subscription in values(local.subscriptions) : subscription.function])

  name     = google_cloud_run_v2_service.function[each.key].name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.pusher.member
}

resource "google_pubsub_subscription" "push" {
  for_each = local.subscriptions

  name  = each.key
  topic = google_pubsub_topic.topic[each.value.topic].id

  # Also the time that a push may take: 30 s more than the function gives itself.
  ack_deadline_seconds       = min(600, local.functions[each.value.function].timeout_seconds + 30)
  message_retention_duration = local.envelope_lifetime

  push_config {
    push_endpoint = google_cloud_run_v2_service.function[each.value.function].uri

    oidc_token {
      service_account_email = google_service_account.pusher.email
      audience              = local.push_audiences[each.value.function]
    }
  }

  retry_policy {
    minimum_backoff = "${local.functions[each.value.function].min_backoff_seconds}s"
    maximum_backoff = "${local.functions[each.value.function].max_backoff_seconds}s"
  }

  # A dead letter that cannot be recorded has nowhere else to go: it is kept and tried again.
  dynamic "dead_letter_policy" {
    for_each = each.value.topic == local.dead_letters ? [] : [local.dead_letters]

    content {
      dead_letter_topic     = google_pubsub_topic.topic[local.dead_letters].id
      max_delivery_attempts = local.functions[each.value.function].max_attempts
    }
  }

  expiration_policy {
    ttl = ""
  }
}

resource "google_pubsub_topic_iam_member" "dead_letters" {
  topic  = google_pubsub_topic.topic[local.dead_letters].id
  role   = "roles/pubsub.publisher"
  member = local.pubsub_agent
}

resource "google_pubsub_subscription_iam_member" "forwarded" {
  for_each = { for name, subscription in local.subscriptions : name => subscription if subscription.topic != local.dead_letters }

  subscription = google_pubsub_subscription.push[each.key].name
  role         = "roles/pubsub.subscriber"
  member       = local.pubsub_agent
}
