# Secrets have no values here: they are added by hand (docs/deploy.md), or by the key rotator, and never enter the state.

locals {
  # Every function keeps claims, limits and breakers, and tells of its errors.
  shared_secrets = concat(["SENTRY_DSN"], var.guards_backend == "redis" ? ["REDIS_URL"] : [])
  signing_keys   = "COMM_HMAC_KEYS"

  secrets_of = {
    for name, function in local.functions :
    name => toset(concat([for secret in function.secrets : secret if secret != local.signing_keys], local.shared_secrets))
  }
  # The pipeline migrates the database before it deploys, and asks the API at its end as any caller does.
  builder_secrets = toset(["DATABASE_URL", "RELEASE_API_KEY"])
  secret_names    = setunion(local.builder_secrets, flatten([for secrets in values(local.secrets_of) : tolist(secrets)]))

  secret_readers = merge([
    for name, secrets in local.secrets_of : { for secret in secrets : "${secret}/${name}" => { secret = secret, function = name } }
  ]...)
}

resource "google_secret_manager_secret" "secret" {
  for_each = local.secret_names

  secret_id           = each.key
  deletion_protection = var.environment == "production"

  replication {
    auto {}
  }
}

resource "google_secret_manager_secret_iam_member" "function" {
  for_each = local.secret_readers

  secret_id = google_secret_manager_secret.secret[each.value.secret].id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.function[each.value.function].member
}

resource "google_secret_manager_secret_iam_member" "builder" {
  for_each = local.builder_secrets

  secret_id = google_secret_manager_secret.secret[each.key].id
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:builder@${var.project_id}.iam.gserviceaccount.com"
}

# The signing keys: a version for each, and an alias for the one that signs. shared/keys says how they rotate.
resource "google_secret_manager_secret" "signing_keys" {
  secret_id           = local.signing_keys
  deletion_protection = var.environment == "production"

  replication {
    auto {}
  }

  # Only tells the topic; the function key_rotator does it.
  rotation {
    rotation_period    = "7776000s"
    next_rotation_time = timeadd(plantimestamp(), "2160h")
  }

  topics {
    name = google_pubsub_topic.topic["key-rotation"].id
  }

  # Who rotates notes there what signs; Secret Manager moves the time itself.
  lifecycle {
    ignore_changes = [annotations, rotation[0].next_rotation_time, version_aliases]
  }

  depends_on = [google_pubsub_topic_iam_member.rotation_notices]
}

resource "google_pubsub_topic_iam_member" "rotation_notices" {
  topic  = google_pubsub_topic.topic["key-rotation"].id
  role   = "roles/pubsub.publisher"
  member = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-secretmanager.iam.gserviceaccount.com"
}

# Every function signs or verifies: it reads the keys, and which of them signs.
resource "google_secret_manager_secret_iam_member" "signing_keys" {
  for_each = {
    for pair in setproduct(keys(local.functions), ["secretAccessor", "viewer"]) : "${pair[0]}/${pair[1]}" => { function = pair[0], role = pair[1] }
  }

  secret_id = google_secret_manager_secret.signing_keys.id
  role      = "roles/secretmanager.${each.value.role}"
  member    = google_service_account.function[each.value.function].member
}

# No predefined role lets anybody note the alias without being able to delete the secret.
resource "google_project_iam_custom_role" "key_rotator" {
  role_id     = "signingKeyRotator"
  title       = "Rotates the signing keys"
  description = "Adds versions, disables them, and notes which one signs."
  permissions = [
    "secretmanager.secrets.get",
    "secretmanager.secrets.update",
    "secretmanager.versions.add",
    "secretmanager.versions.disable",
    "secretmanager.versions.get",
    "secretmanager.versions.list",
  ]
}

resource "google_secret_manager_secret_iam_member" "key_rotator" {
  secret_id = google_secret_manager_secret.signing_keys.id
  role      = google_project_iam_custom_role.key_rotator.id
  member    = google_service_account.function["key_rotator"].member
}
