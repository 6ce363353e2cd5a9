# Every night the database is dumped, compressed, into a bucket of another region (docs/RUNBOOK.md, backup and restore).

resource "google_storage_bucket" "backups" {
  name                        = "${var.project_id}-backups"
  location                    = var.backup_region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # Nobody, the job included, can delete or replace a backup before its time.
  retention_policy {
    retention_period = 7 * 86400
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      age = 8
    }
  }
}

resource "google_service_account" "backup" {
  account_id   = "backup"
  display_name = "Dumps the database"
}

resource "google_storage_bucket_iam_member" "backup" {
  for_each = toset(["roles/storage.objectCreator", "roles/storage.objectViewer"])

  bucket = google_storage_bucket.backups.name
  role   = each.key
  member = google_service_account.backup.member
}

resource "google_secret_manager_secret_iam_member" "backup" {
  secret_id = google_secret_manager_secret.secret["DATABASE_URL"].id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.backup.member
}

resource "google_project_iam_member" "backup_logs" {
  project = var.project_id
  role    = "roles/logging.logWriter"
  member  = google_service_account.backup.member
}

resource "google_cloud_run_v2_job" "backup" {
  name                = "backup"
  location            = var.region
  deletion_protection = false

  template {
    template {
      service_account = google_service_account.backup.email
      timeout         = "3600s"
      max_retries     = 2

      containers {
        # Until the pipeline has deployed: does nothing, and the alert on old backups says so.
        image = "us-docker.pkg.dev/cloudrun/container/job"
        args  = ["backup", "--to", "gs://${google_storage_bucket.backups.name}"]

        env {
          name  = "GCP_PROJECT_ID"
          value = var.project_id
        }

        env {
          name = "DATABASE_URL"

          value_source {
            secret_key_ref {
              secret  = google_secret_manager_secret.secret["DATABASE_URL"].secret_id
              version = "latest"
            }
          }
        }

        resources {
          limits = { cpu = "1", memory = "2Gi" }
        }
      }
    }
  }

  lifecycle {
    ignore_changes = [client, client_version, template[0].template[0].containers[0].image]
  }

  depends_on = [google_secret_manager_secret_iam_member.backup]
}

resource "google_cloud_run_v2_job_iam_member" "scheduler" {
  name     = google_cloud_run_v2_job.backup.name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.scheduler.member
}

resource "google_cloud_scheduler_job" "backup" {
  name             = "backup"
  description      = "The nightly dump of the database."
  schedule         = "30 2 * * *"
  time_zone        = "Etc/UTC"
  attempt_deadline = "180s"

  http_target {
    http_method = "POST"
    uri         = "https://run.googleapis.com/v2/${google_cloud_run_v2_job.backup.id}:run"

    oauth_token {
      service_account_email = google_service_account.scheduler.email
    }
  }

  retry_config {
    retry_count = 3
  }
}
