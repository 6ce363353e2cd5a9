# What there is to deploy is read from where it is written: a folder is a function, a file is a workflow.

locals {
  root = "${path.module}/.."

  functions = {
    for file in fileset("${local.root}/functions", "*/function.yaml") :
    dirname(file) => merge(
      { memory = "512Mi", timeout_seconds = 300, concurrency = 80, max_attempts = 10, min_backoff_seconds = 2, max_backoff_seconds = 600, publishes = [], secrets = [] },
      yamldecode(file("${local.root}/functions/${file}")),
    )
  }

  # Services and accounts are called as their function, without the underscores that Google does not take.
  service_names = { for name in keys(local.functions) : name => replace(name, "_", "-") }

  agents = toset([
    for name, function in local.functions : name
    if anytrue([for trigger in function.triggers : try(trigger.topic, "") == "agent-${name}"])
  ])

  over_http = toset([for name, function in local.functions : name if anytrue([for trigger in function.triggers : try(trigger.http, false)])])

  subscriptions = merge([
    for name, function in local.functions : {
      for trigger in function.triggers : "${trigger.topic}.${name}" => { function = name, topic = trigger.topic }
      if can(trigger.topic)
    }
  ]...)

  timers = {
    for name, function in local.functions : name => one([for trigger in function.triggers : trigger.schedule if can(trigger.schedule)])
    if anytrue([for trigger in function.triggers : can(trigger.schedule)])
  }

  topics = toset([for subscription in values(local.subscriptions) : subscription.topic])

  # Who may publish where: what each function says it publishes, with agent-* for the topics of all agents.
  publishers = merge([
    for name, function in local.functions : {
      for topic in local.topics : "${topic}/${name}" => { function = name, topic = topic }
      if contains(function.publishes, topic) || (contains(function.publishes, "agent-*") && startswith(topic, "agent-"))
    }
  ]...)

  workflows = {
    for file in fileset("${local.root}/workflows", "*.yaml") :
    trimsuffix(file, ".yaml") => yamldecode(file("${local.root}/workflows/${file}"))
  }
  schedules = {
    for name, workflow in local.workflows : name => try(workflow.schedule.cron, workflow.schedule)
    if try(workflow.schedule, null) != null
  }
}
