# Outputs that are too large for a message, and the images of the functions.

resource "google_storage_bucket" "outputs" {
  name                        = "${var.project_id}-outputs"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # Longer than a workflow is kept (RETENTION_DAYS) and than the longest wait in one that still runs.
  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      age = 400
    }
  }
}

# They write and read outputs, and can neither list nor delete nor replace them.
resource "google_storage_bucket_iam_member" "outputs" {
  for_each = merge([
    for name in keys(local.functions) : { for role in ["objectCreator", "objectViewer"] : "${name}/${role}" => { function = name, role = role } }
  ]...)

  bucket = google_storage_bucket.outputs.name
  role   = "roles/storage.${each.value.role}"
  member = google_service_account.function[each.value.function].member
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
