# One service and one account per function. Terraform owns what a service is; the pipeline owns which image runs, and how much of the traffic it gets.

locals {
  default_max_instances = { agent = 20, other = 10 }

  push_audiences = { for name in keys(local.functions) : name => "agent-team/${local.service_names[name]}" }

  # Secrets are not here: a function fetches those of its function.yaml from Secret Manager as it starts. The signing keys are read
  # while it runs, so that they can rotate.
  environment = merge(
    {
      AGENT_BUS_PROVIDER       = "pubsub"
      API_AUDIENCE             = length(var.api_callers) == 0 ? "" : "https://${var.domain}"
      API_CALLERS              = join(",", [for email, scope in var.api_callers : "${email}=${scope}"])
      API_PROXY_HOPS           = var.cloudflare_zone_id == "" ? "1" : "2"
      GCP_LOCATION             = var.region
      GCP_PROJECT_ID           = var.project_id
      GUARDS_BACKEND           = var.guards_backend
      MAX_CONCURRENT_PIPELINES = tostring(var.max_concurrent_pipelines)
      NODE_ENV                 = "production"
      OUTPUTS_URL              = "gs://${google_storage_bucket.outputs.name}"
      PUSH_VERIFIED_BY         = "cloud-run"
      PUBLIC_URL               = "https://${var.domain}"
      SECRETS_FROM             = "secret-manager"
      SENTRY_ENVIRONMENT       = var.environment
    },
    var.cloudflare_zone_id == "" ? {} : { CLOUDFLARE_ZONE_ID = var.cloudflare_zone_id },
  )
}

resource "google_service_account" "function" {
  for_each = local.functions

  account_id   = "fn-${local.service_names[each.key]}"
  display_name = "Function ${each.key}"
  description  = each.value.description
}

resource "google_cloud_run_v2_service" "function" {
  for_each = local.functions

  name                = local.service_names[each.key]
  location            = var.region
  description         = each.value.description
  ingress             = contains(local.over_http, each.key) ? "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER" : "INGRESS_TRAFFIC_INTERNAL_ONLY"
  deletion_protection = false
  labels              = { function = local.service_names[each.key] }

  # What Pub/Sub's tokens are for. Cloud Run refuses a token for anything but the service's URL and what is named here.
  custom_audiences = [local.push_audiences[each.key]]

  template {
    service_account                  = google_service_account.function[each.key].email
    timeout                          = "${each.value.timeout_seconds}s"
    max_instance_request_concurrency = each.value.concurrency
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"

    scaling {
      min_instance_count = 0
      max_instance_count = lookup(var.max_instances, each.key, local.default_max_instances[contains(local.agents, each.key) ? "agent" : "other"])
    }

    vpc_access {
      egress = "PRIVATE_RANGES_ONLY"

      network_interfaces {
        network    = google_compute_network.private.id
        subnetwork = google_compute_subnetwork.functions.id
      }
    }

    containers {
      # Until the pipeline has deployed: answers 200 and does nothing.
      image = "us-docker.pkg.dev/cloudrun/container/hello"

      dynamic "env" {
        for_each = merge(
          local.environment,
          {
            FUNCTION_TARGET      = each.key
            PUSH_AUDIENCE        = local.push_audiences[each.key]
            PUSH_SERVICE_ACCOUNT = google_service_account.pusher.email
          },
          # Where to go with a key: the gateway, for agents that search documents; Supabase, for functions that keep the state.
          contains(each.value.secrets, "AGENT_TEAM_API_KEY") ? { AGENT_TEAM_URL = "https://${var.domain}" } : {},
          contains(each.value.secrets, "SUPABASE_SERVICE_ROLE_KEY") ? { SUPABASE_URL = var.supabase_url } : {},
        )

        content {
          name  = env.key
          value = env.value
        }
      }

      resources {
        limits            = { cpu = "1", memory = each.value.memory }
        cpu_idle          = true
        startup_cpu_boost = true
      }

      # An instance that has not answered five times in a row is replaced.
      dynamic "liveness_probe" {
        for_each = contains(local.over_http, each.key) ? ["/health"] : []

        content {
          period_seconds    = 60
          timeout_seconds   = 10
          failure_threshold = 5

          http_get {
            path = liveness_probe.value
          }
        }
      }
    }
  }

  # Not the revision's name, though the pipeline gives one: kept, it would be given to the next revision too, which Cloud Run refuses.
  lifecycle {
    ignore_changes = [
      client,
      client_version,
      template[0].containers[0].image,
      template[0].labels,
      traffic,
    ]
  }

  depends_on = [google_secret_manager_secret_iam_member.function, google_secret_manager_secret_iam_member.signing_keys]
}

# Behind the load balancer, which nobody can go around, the gateway lets everybody in who shows a key: it asks for it itself.
resource "google_cloud_run_v2_service_iam_member" "edge" {
  for_each = local.over_http

  name     = google_cloud_run_v2_service.function[each.key].name
  location = var.region
  role     = "roles/run.invoker"
  member   = "allUsers"
}

resource "google_project_iam_member" "function_logs" {
  for_each = local.functions

  project = var.project_id
  role    = "roles/logging.logWriter"
  member  = google_service_account.function[each.key].member
}

resource "google_project_iam_member" "function_firestore" {
  for_each = toset([for name in keys(local.functions) : name if var.guards_backend == "firestore"])

  project = var.project_id
  role    = "roles/datastore.user"
  member  = google_service_account.function[each.key].member
}
