# Once per project, by its owner, with the state on their own disk: what the other folder and the pipeline need to work at all.

terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }

    # For the services' own accounts alone.
    google-beta = {
      source  = "hashicorp/google-beta"
      version = "~> 6.50"
    }
  }
}

provider "google" {
  project = var.project_id
  region  = var.region
}

provider "google-beta" {
  project = var.project_id
  region  = var.region
}

variable "domain" {
  description = "Host name of the gateway, which the pipeline asks at its end."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", var.domain))
    error_message = "The domain must be a host name such as agents.example.com, without a scheme."
  }
}

variable "environment" {
  description = "Which of the environments this project is."
  type        = string

  validation {
    condition     = contains(["staging", "production"], var.environment)
    error_message = "The environment must be staging or production."
  }
}

variable "project_id" {
  description = "Google Cloud project that the platform goes into."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "The project id must be 6 to 30 lower-case letters, digits and hyphens, and begin with a letter."
  }
}

variable "region" {
  description = "Region of the state's bucket."
  type        = string
  default     = "us-central1"

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "The region must look like us-central1."
  }
}

variable "repository" {
  description = "Connected repository (projects/…/locations/…/connections/…/repositories/…) whose commits are released; empty for none yet."
  type        = string
  default     = ""
}

locals {
  apis = toset([
    "artifactregistry.googleapis.com",
    "billingbudgets.googleapis.com",
    "certificatemanager.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "cloudscheduler.googleapis.com",
    "compute.googleapis.com",
    "containerscanning.googleapis.com",
    "firestore.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "ondemandscanning.googleapis.com",
    "pubsub.googleapis.com",
    "redis.googleapis.com",
    "run.googleapis.com",
    "secretmanager.googleapis.com",
    "servicenetworking.googleapis.com",
    "storage.googleapis.com",
  ])

  # What the pipeline does: push an image, deploy services and jobs, read metrics to judge a canary, write its log.
  builder_roles = toset([
    "roles/artifactregistry.writer",
    "roles/logging.logWriter",
    "roles/monitoring.viewer",
    "roles/ondemandscanning.admin",
    "roles/run.developer",
  ])
}

resource "google_project_service" "api" {
  for_each = local.apis

  service            = each.key
  disable_on_destroy = false
}

# The accounts in whose name Google's own services act here. They are made with their first use, which is too late for whoever grants
# them something before.
resource "google_project_service_identity" "agent" {
  provider = google-beta

  for_each = toset(["cloudbuild.googleapis.com", "pubsub.googleapis.com", "secretmanager.googleapis.com"])

  service = each.key

  depends_on = [google_project_service.api]
}

# Keeps the token that a connected repository is read with.
resource "google_project_iam_member" "connection" {
  project = var.project_id
  role    = "roles/secretmanager.admin"
  member  = google_project_service_identity.agent["cloudbuild.googleapis.com"].member
}

resource "google_storage_bucket" "state" {
  name                        = "${var.project_id}-terraform-state"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = true
  }

  lifecycle_rule {
    action {
      type = "Delete"
    }

    condition {
      num_newer_versions = 50
    }
  }
}

resource "google_service_account" "builder" {
  account_id   = "builder"
  display_name = "Builds, tests and deploys"

  depends_on = [google_project_service.api]
}

resource "google_project_iam_member" "builder" {
  for_each = local.builder_roles

  project = var.project_id
  role    = each.key
  member  = google_service_account.builder.member
}

# The pipeline runs as an account of its own, deploys services that run as theirs, and keeps what a release replaced.
resource "google_project_iam_member" "builder_acts_as_functions" {
  project = var.project_id
  role    = "roles/iam.serviceAccountUser"
  member  = google_service_account.builder.member
}

# It adds, and sees what is there; it reads and replaces nothing.
resource "google_storage_bucket_iam_member" "builder_state" {
  for_each = toset(["roles/storage.legacyBucketReader", "roles/storage.objectCreator"])

  bucket = google_storage_bucket.state.name
  role   = each.key
  member = google_service_account.builder.member
}

resource "google_cloudbuild_trigger" "release" {
  count = var.repository == "" ? 0 : 1

  name            = "release-${var.environment}"
  description     = "Every commit on main; production asks for an approval first."
  location        = var.region
  service_account = google_service_account.builder.id
  filename        = "cloudbuild.yaml"

  substitutions = {
    _ENVIRONMENT = var.environment
    _REGION      = var.region
    _URL         = "https://${var.domain}"
  }

  repository_event_config {
    repository = var.repository

    push {
      branch = "^main$"
    }
  }

  approval_config {
    approval_required = var.environment == "production"
  }
}

output "builder" {
  description = "Account that the pipeline's trigger runs as."
  value       = google_service_account.builder.email
}

output "state_bucket" {
  description = "Bucket for `terraform init -backend-config=bucket=…`."
  value       = google_storage_bucket.state.name
}
