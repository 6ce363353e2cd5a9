# Outputs that are too large for a message, and the images of the functions.

resource "google_storage_bucket" "outputs" {
  name                        = "${var.project_id}-outputs"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # The time is set anew whenever the same content is put again. Longer than a workflow is kept (RETENTION_DAYS), and than the
  # longest wait in one that still runs.
  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      days_since_custom_time = 400
    }
  }
}

# What is under a hash never changes: it is put, read, and its time set anew. Nobody lists or deletes.
resource "google_project_iam_custom_role" "outputs" {
  role_id     = "outputsKeeper"
  title       = "Puts and reads outputs"
  permissions = ["storage.objects.create", "storage.objects.get", "storage.objects.update"]
}

resource "google_storage_bucket_iam_member" "outputs" {
  for_each = toset([for name, function in local.functions : name if contains(local.agents, name) || contains(function.secrets, "DATABASE_URL")])

  bucket = google_storage_bucket.outputs.name
  role   = google_project_iam_custom_role.outputs.name
  member = google_service_account.function[each.key].member
}

resource "google_artifact_registry_repository" "images" {
  repository_id = "agent-team"
  location      = var.region
  format        = "DOCKER"
  description   = "One image, which serves every function."

  docker_config {
    immutable_tags = true
  }

  vulnerability_scanning_config {
    enablement_config = "INHERITED"
  }

  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"

    condition {
      older_than = "7776000s"
    }
  }

  cleanup_policies {
    id     = "keep-recent"
    action = "KEEP"

    most_recent_versions {
      keep_count = 20
    }
  }
}
