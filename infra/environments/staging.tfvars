environment   = "staging"
project_id    = "my-agent-team-staging"
region        = "us-central1"
backup_region = "us-east1"
domain        = "agents.staging.example.com"
supabase_url  = "https://my-staging-project.supabase.co"
runbook_url   = "https://git.example.com/platform/agent-team/docs/RUNBOOK.md"
alert_email   = "platform@example.com"

ai_budget_usd_per_day = 10
monthly_budget_usd    = 100
