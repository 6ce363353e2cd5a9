# Every variable that is wrong is refused before anything is made.

variables {
  environment   = "production"
  project_id    = "my-agent-team"
  region        = "us-central1"
  backup_region = "us-east1"
  domain        = "agents.example.com"
  supabase_url  = "https://my-project.supabase.co"
  runbook_url   = "https://git.example.com/platform/agent-team/docs/RUNBOOK.md"
  alert_email   = "platform@example.com"
}

run "a_domain_has_no_scheme" {
  command = plan

  variables {
    domain = "https://agents.example.com"
  }

  expect_failures = [var.domain]
}

run "backups_lie_in_another_region" {
  command = plan

  variables {
    backup_region = "us-central1"
  }

  expect_failures = [var.backup_region]
}

run "somebody_has_to_run" {
  command = plan

  variables {
    max_concurrent_pipelines = 0
  }

  expect_failures = [var.max_concurrent_pipelines]
}

run "there_are_two_environments" {
  command = plan

  variables {
    environment = "prod"
  }

  expect_failures = [var.environment]
}

run "callers_have_scopes" {
  command = plan

  variables {
    api_callers = { "ann@example.com" = "owner" }
  }

  expect_failures = [var.api_callers]
}

run "the_database_is_asked_over_https" {
  command = plan

  variables {
    supabase_url = "http://my-project.supabase.co"
  }

  expect_failures = [var.supabase_url]
}

run "a_zone_id_is_hexadecimal" {
  command = plan

  variables {
    cloudflare_zone_id = "agents.example.com"
  }

  expect_failures = [var.cloudflare_zone_id]
}
