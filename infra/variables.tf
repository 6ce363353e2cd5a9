variable "ai_budget_usd_per_day" {
  description = "Spend on models, in US dollars a day, above which an alert is raised."
  type        = number
  default     = 50

  validation {
    condition     = var.ai_budget_usd_per_day > 0
    error_message = "The daily spend on models must be above 0 dollars."
  }
}

variable "alert_email" {
  description = "Address that warnings are sent to."
  type        = string

  validation {
    condition     = can(regex("^[^@\\s]+@[^@\\s]+\\.[^@\\s]+$", var.alert_email))
    error_message = "The alert email must be an address such as oncall@example.com."
  }
}

variable "api_callers" {
  description = "What accounts may do that show a Google identity token, by email: read, submit or admin."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for scope in values(var.api_callers) : contains(["read", "submit", "admin"], scope)])
    error_message = "Every caller of the API needs one of the scopes read, submit and admin."
  }
}

variable "backup_region" {
  description = "Region of the backups and of the state's copies; another than the one that the platform runs in."
  type        = string

  validation {
    condition     = var.backup_region != var.region
    error_message = "Backups must be kept in another region than the one that the platform runs in."
  }
}

variable "billing_account" {
  description = "Billing account that the monthly budget watches, such as 012345-6789AB-CDEF01; empty for no budget."
  type        = string
  default     = ""

  validation {
    condition     = var.billing_account == "" || can(regex("^[0-9A-F]{6}-[0-9A-F]{6}-[0-9A-F]{6}$", var.billing_account))
    error_message = "The billing account must look like 012345-6789AB-CDEF01, or be empty."
  }
}

variable "cloudflare_zone_id" {
  description = "Cloudflare zone in front of the gateway; when it is given, only Cloudflare's addresses get in."
  type        = string
  default     = ""

  validation {
    condition     = var.cloudflare_zone_id == "" || can(regex("^[0-9a-f]{32}$", var.cloudflare_zone_id))
    error_message = "The Cloudflare zone id must be 32 hexadecimal digits, or be empty."
  }
}

variable "domain" {
  description = "Host name of the gateway, such as agents.example.com; its A record must point to the output edge_address."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z]{2,}$", var.domain))
    error_message = "The domain must be a host name such as agents.example.com, without a scheme."
  }
}

variable "environment" {
  description = "Which of the environments this is."
  type        = string

  validation {
    condition     = contains(["staging", "production"], var.environment)
    error_message = "The environment must be staging or production."
  }
}

variable "guards_backend" {
  description = "Where idempotency, limits and breakers are kept."
  type        = string
  default     = "redis"

  validation {
    condition     = contains(["redis", "firestore"], var.guards_backend)
    error_message = "The guards' back end must be redis or firestore."
  }
}

variable "max_concurrent_pipelines" {
  description = "Workflows that run at once; the rest queue."
  type        = number
  default     = 10

  validation {
    condition     = var.max_concurrent_pipelines >= 1 && floor(var.max_concurrent_pipelines) == var.max_concurrent_pipelines
    error_message = "The number of workflows that run at once must be a whole number of at least 1."
  }
}

variable "max_instances" {
  description = "Instances of a function at most, by the function's name; others have default_max_instances."
  type        = map(number)
  default     = {}

  validation {
    condition     = alltrue([for count in values(var.max_instances) : count >= 1 && count <= 1000])
    error_message = "Each function needs from 1 to 1000 instances at most."
  }
}

variable "monthly_budget_usd" {
  description = "The project's monthly budget in US dollars."
  type        = number
  default     = 500

  validation {
    condition     = var.monthly_budget_usd >= 1
    error_message = "The monthly budget must be at least 1 dollar."
  }
}

variable "pager_channels" {
  description = "Notification channels (projects/…/notificationChannels/…) that critical alerts also go to."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for channel in var.pager_channels : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel))])
    error_message = "Each pager channel must be a full name such as projects/my-project/notificationChannels/123."
  }
}

variable "project_id" {
  description = "Google Cloud project that everything is made in."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "The project id must be 6 to 30 lower-case letters, digits and hyphens, and begin with a letter."
  }
}

variable "redis_memory_gb" {
  description = "Memory of the Redis instance in GB."
  type        = number
  default     = 1

  validation {
    condition     = var.redis_memory_gb >= 1 && var.redis_memory_gb <= 300
    error_message = "Redis needs from 1 to 300 GB of memory."
  }
}

variable "region" {
  description = "Region of every regional resource."
  type        = string
  default     = "us-central1"

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "The region must look like us-central1."
  }
}

variable "runbook_url" {
  description = "Where the runbook can be read; every alert links to its own section there."
  type        = string

  validation {
    condition     = can(regex("^https://[^#]+$", var.runbook_url))
    error_message = "The runbook's URL must begin with https:// and have no fragment."
  }
}

variable "supabase_url" {
  description = "The Supabase project's URL."
  type        = string

  validation {
    condition     = startswith(var.supabase_url, "https://")
    error_message = "The Supabase URL must begin with https://."
  }
}
