# The smoke test of a release: a job inside the network, since the functions let nobody in from outside.

resource "google_service_account" "smoke" {
  account_id   = "smoke"
  display_name = "Asks new revisions whether they work"
}

resource "google_cloud_run_v2_service_iam_member" "smoke" {
  for_each = local.functions

  name     = google_cloud_run_v2_service.function[each.key].name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.smoke.member
}

resource "google_project_iam_member" "smoke_logs" {
  project = var.project_id
  role    = "roles/logging.logWriter"
  member  = google_service_account.smoke.member
}

resource "google_cloud_run_v2_job" "smoke" {
  name                = "smoke"
  location            = var.region
  deletion_protection = false

  template {
    template {
      service_account = google_service_account.smoke.email
      timeout         = "600s"
      max_retries     = 0

      # All traffic, so that it comes to the functions from inside.
      vpc_access {
        egress = "ALL_TRAFFIC"

        network_interfaces {
          network    = google_compute_network.private.id
          subnetwork = google_compute_subnetwork.functions.id
        }
      }

      containers {
        image = "us-docker.pkg.dev/cloudrun/container/job"

        env {
          name  = "GCP_LOCATION"
          value = var.region
        }

        env {
          name  = "PROJECT_NUMBER"
          value = data.google_project.this.number
        }

        resources {
          limits = { cpu = "1", memory = "512Mi" }
        }
      }
    }
  }

  lifecycle {
    ignore_changes = [client, client_version, template[0].template[0].containers[0].image, template[0].template[0].containers[0].args]
  }
}
