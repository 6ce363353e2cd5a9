output "backup_bucket" {
  description = "Bucket of the nightly dumps."
  value       = google_storage_bucket.backups.name
}

output "certificate_record" {
  description = "Record by which Google sees that the domain is ours, and makes the certificate."
  value       = join(" ", [for record in google_certificate_manager_dns_authorization.edge.dns_resource_record : "${record.name} ${record.type} ${record.data}"])
}

output "edge_address" {
  description = "Address that the domain's A record must point to."
  value       = google_compute_global_address.edge.address
}

output "functions" {
  description = "Every function with its service, account and subscriptions."
  value = {
    for name in keys(local.functions) : name => {
      account       = google_service_account.function[name].account_id
      is_agent      = contains(local.agents, name)
      secrets       = sort(tolist(local.secrets_of[name]))
      service       = google_cloud_run_v2_service.function[name].name
      subscriptions = sort([for key, subscription in local.subscriptions : key if subscription.function == name])
    }
  }
}

output "image_repository" {
  description = "Where the pipeline pushes the image."
  value       = "${var.region}-docker.pkg.dev/${var.project_id}/${google_artifact_registry_repository.images.repository_id}"
}

output "redis_host" {
  description = "Address of Redis inside the network; the secret REDIS_URL is made with it."
  value       = one(google_redis_instance.guards[*].host)
}

output "secrets" {
  description = "Secrets that need a value before the first deployment."
  value       = sort(tolist(local.secret_names))
}

output "url" {
  description = "Where the API answers."
  value       = "https://${var.domain}"
}
