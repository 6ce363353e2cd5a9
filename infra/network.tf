# A network without a way in: Redis has no other address, and functions reach it from inside.

resource "google_compute_network" "private" {
  name                    = "agent-team"
  auto_create_subnetworks = false
}

# Cloud Run takes two addresses for an instance, and during a canary there may be twice as many of those.
resource "google_compute_subnetwork" "functions" {
  name                     = "functions"
  network                  = google_compute_network.private.id
  region                   = var.region
  ip_cidr_range            = "10.8.0.0/20"
  private_ip_google_access = true

  log_config {
    aggregation_interval = "INTERVAL_10_MIN"
    flow_sampling        = 0.1
    metadata             = "INCLUDE_ALL_METADATA"
  }
}

resource "google_compute_firewall" "deny_ingress" {
  name      = "deny-ingress"
  network   = google_compute_network.private.id
  direction = "INGRESS"
  priority  = 65000

  source_ranges = ["0.0.0.0/0"]

  deny {
    protocol = "all"
  }
}

resource "google_compute_global_address" "services" {
  name          = "private-services"
  network       = google_compute_network.private.id
  purpose       = "VPC_PEERING"
  address_type  = "INTERNAL"
  prefix_length = 20
}

resource "google_service_networking_connection" "services" {
  network                 = google_compute_network.private.id
  service                 = "servicenetworking.googleapis.com"
  reserved_peering_ranges = [google_compute_global_address.services.name]
}
