environment   = "production"
project_id    = "my-agent-team"
region        = "us-central1"
backup_region = "us-east1"
domain        = "agents.example.com"
supabase_url  = "https://my-project.supabase.co"
runbook_url   = "https://git.example.com/platform/agent-team/docs/RUNBOOK.md"
alert_email   = "platform@example.com"

max_instances            = { orchestrator = 20, gateway = 20 }
max_concurrent_pipelines = 50
ai_budget_usd_per_day    = 100
monthly_budget_usd       = 4000
