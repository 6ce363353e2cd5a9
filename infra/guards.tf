# Where claims, limits, budgets and breakers are kept: one of Redis and Firestore.

resource "google_redis_instance" "guards" {
  count = var.guards_backend == "redis" ? 1 : 0

  name                    = "guards"
  display_name            = "Claims, limits and breakers"
  region                  = var.region
  tier                    = var.environment == "production" ? "STANDARD_HA" : "BASIC"
  memory_size_gb          = var.redis_memory_gb
  redis_version           = "REDIS_7_2"
  authorized_network      = google_compute_network.private.id
  connect_mode            = "PRIVATE_SERVICE_ACCESS"
  auth_enabled            = true
  transit_encryption_mode = "SERVER_AUTHENTICATION"

  # A claim that is thrown out to make room would let work be done twice.
  redis_configs = { maxmemory-policy = "noeviction" }

  maintenance_policy {
    weekly_maintenance_window {
      day = "SUNDAY"

      start_time {
        hours   = 4
        minutes = 0
        nanos   = 0
        seconds = 0
      }
    }
  }

  depends_on = [google_service_networking_connection.services]
}

resource "google_firestore_database" "guards" {
  count = var.guards_backend == "firestore" ? 1 : 0

  name                    = "(default)"
  location_id             = var.region
  type                    = "FIRESTORE_NATIVE"
  concurrency_mode        = "OPTIMISTIC"
  delete_protection_state = var.environment == "production" ? "DELETE_PROTECTION_ENABLED" : "DELETE_PROTECTION_DISABLED"
}

# Documents say themselves when they are over; this only clears them away, within a day.
resource "google_firestore_field" "expiry" {
  for_each = var.guards_backend == "firestore" ? toset(["agent-team-claims", "agent-team-buckets", "agent-team-breakers", "agent-team-cache"]) : toset([])

  database   = google_firestore_database.guards[0].name
  collection = each.key
  field      = "expire_at"

  ttl_config {}

  # Nobody asks by it.
  index_config {}
}
