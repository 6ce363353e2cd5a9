terraform {
  required_version = ">= 1.9"

  # Filled in by `terraform init -backend-config=bucket=…`: the bootstrap made the bucket.
  backend "gcs" {
    prefix = "agent-team"
  }

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
  }
}

provider "google" {
  project = var.project_id
  region  = var.region

  # Budgets are an API of the billing account: calls need a project to count against.
  billing_project       = var.project_id
  user_project_override = true

  default_labels = {
    app         = "agent-team"
    environment = var.environment
  }
}
