# The only way in from outside: a load balancer with TLS, a limit per client, and, where there is a Cloudflare zone, nobody but Cloudflare.

locals {
  behind_cloudflare = var.cloudflare_zone_id != ""

  # A certificate for another domain is another certificate: it must exist before the old one goes.
  certificate = "agent-team-${substr(sha256(var.domain), 0, 8)}"

  # https://www.cloudflare.com/ips/
  cloudflare_ranges = [
    "173.245.48.0/20", "103.21.244.0/22", "103.22.200.0/22", "103.31.4.0/22", "141.101.64.0/18", "108.162.192.0/18", "190.93.240.0/20",
    "188.114.96.0/20", "197.234.240.0/22", "198.41.128.0/17", "162.158.0.0/15", "104.16.0.0/13", "104.24.0.0/14", "172.64.0.0/13",
    "131.0.72.0/22", "2400:cb00::/32", "2606:4700::/32", "2803:f800::/32", "2405:b500::/32", "2405:8100::/32", "2a06:98c0::/29",
    "2c0f:f248::/32",
  ]
}

resource "google_compute_global_address" "edge" {
  name = "agent-team-edge"
}

resource "google_compute_region_network_endpoint_group" "gateway" {
  name                  = "gateway"
  region                = var.region
  network_endpoint_type = "SERVERLESS"

  cloud_run {
    service = google_cloud_run_v2_service.function["gateway"].name
  }
}

resource "google_compute_security_policy" "edge" {
  name        = "agent-team-edge"
  description = "Who gets to the gateway, and how often."

  # A rule takes ten ranges.
  dynamic "rule" {
    for_each = local.behind_cloudflare ? chunklist(local.cloudflare_ranges, 10) : []

    content {
      action      = "throttle"
      priority    = 1000 + rule.key
      description = "Cloudflare, limited per client that it names"

      match {
        versioned_expr = "SRC_IPS_V1"

        config {
          src_ip_ranges = rule.value
        }
      }

      rate_limit_options {
        conform_action      = "allow"
        exceed_action       = "deny(429)"
        enforce_on_key      = "HTTP_HEADER"
        enforce_on_key_name = "CF-Connecting-IP"

        rate_limit_threshold {
          count        = 100
          interval_sec = 60
        }
      }
    }
  }

  dynamic "rule" {
    for_each = local.behind_cloudflare ? [] : [2000]

    content {
      action      = "throttle"
      priority    = rule.value
      description = "Everybody, limited per address"

      match {
        versioned_expr = "SRC_IPS_V1"

        config {
          src_ip_ranges = ["*"]
        }
      }

      rate_limit_options {
        conform_action = "allow"
        exceed_action  = "deny(429)"
        enforce_on_key = "IP"

        rate_limit_threshold {
          count        = 100
          interval_sec = 60
        }
      }
    }
  }

  rule {
    action      = "deny(403)"
    priority    = 500
    description = "Log4Shell and its kin"

    match {
      expr {
        expression = "evaluatePreconfiguredWaf('cve-canary', {'sensitivity': 1})"
      }
    }
  }

  rule {
    action      = local.behind_cloudflare ? "deny(403)" : "allow"
    priority    = 2147483647
    description = "Whoever is left"

    match {
      versioned_expr = "SRC_IPS_V1"

      config {
        src_ip_ranges = ["*"]
      }
    }
  }
}

resource "google_compute_backend_service" "gateway" {
  name                  = "gateway"
  load_balancing_scheme = "EXTERNAL_MANAGED"
  protocol              = "HTTPS"
  security_policy       = google_compute_security_policy.edge.id

  backend {
    group = google_compute_region_network_endpoint_group.gateway.id
  }

  log_config {
    enable      = true
    sample_rate = 1
  }
}

resource "google_compute_url_map" "edge" {
  name            = "agent-team-edge"
  default_service = google_compute_backend_service.gateway.id
}

resource "google_compute_url_map" "to_https" {
  name = "agent-team-to-https"

  default_url_redirect {
    https_redirect         = true
    redirect_response_code = "MOVED_PERMANENTLY_DEFAULT"
    strip_query            = false
  }
}

# That the domain is ours is told by a record of its own, not by where its A record leads: behind Cloudflare that leads to Cloudflare,
# and a certificate that was made before could not be made again after its three months.
resource "google_certificate_manager_dns_authorization" "edge" {
  name   = local.certificate
  domain = var.domain

  lifecycle {
    create_before_destroy = true
  }
}

resource "google_certificate_manager_certificate" "edge" {
  name = local.certificate

  managed {
    domains            = [var.domain]
    dns_authorizations = [google_certificate_manager_dns_authorization.edge.id]
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "google_certificate_manager_certificate_map" "edge" {
  name = "agent-team-edge"
}

resource "google_certificate_manager_certificate_map_entry" "edge" {
  name         = local.certificate
  map          = google_certificate_manager_certificate_map.edge.name
  hostname     = var.domain
  certificates = [google_certificate_manager_certificate.edge.id]
}

# The strictest that there is. TLS 1.3 is always offered; its ciphers cannot be switched off.
resource "google_compute_ssl_policy" "edge" {
  name            = "agent-team-edge"
  profile         = "RESTRICTED"
  min_tls_version = "TLS_1_2"
}

resource "google_compute_target_https_proxy" "edge" {
  name            = "agent-team-edge"
  url_map         = google_compute_url_map.edge.id
  certificate_map = "//certificatemanager.googleapis.com/${google_certificate_manager_certificate_map.edge.id}"
  ssl_policy      = google_compute_ssl_policy.edge.id
}

resource "google_compute_target_http_proxy" "to_https" {
  name    = "agent-team-to-https"
  url_map = google_compute_url_map.to_https.id
}

resource "google_compute_global_forwarding_rule" "https" {
  name                  = "agent-team-https"
  load_balancing_scheme = "EXTERNAL_MANAGED"
  ip_address            = google_compute_global_address.edge.id
  port_range            = "443"
  target                = google_compute_target_https_proxy.edge.id
}

resource "google_compute_global_forwarding_rule" "http" {
  name                  = "agent-team-http"
  load_balancing_scheme = "EXTERNAL_MANAGED"
  ip_address            = google_compute_global_address.edge.id
  port_range            = "80"
  target                = google_compute_target_http_proxy.to_https.id
}
