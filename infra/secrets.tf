# Secrets have no values here: they are added by hand (docs/deploy.md), or by the key rotator, and never enter the state.

locals {
  # Every function keeps claims, limits and breakers, and tells of its errors.
  shared_secrets = concat(["SENTRY_DSN"], var.guards_backend == "redis" ? ["REDIS_URL"] : [])
  signing_keys   = "COMM_HMAC_KEYS"

  secrets_of = {
    for name, function in local.functions :
    name => toset(concat([for secret in function.secrets : secret if secret != local.signing_keys], local.shared_secrets))
  }
  secret_names = toset(flatten([for secrets in values(local.secrets_of) : tolist(secrets)]))

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

# The pipeline migrates the database before it deploys.
resource "google_secret_manager_secret_iam_member" "builder" {
  secret_id = google_secret_manager_secret.secret["DATABASE_URL"].id
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:builder@${var.project_id}.iam.gserviceaccount.com"
}
