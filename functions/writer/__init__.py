"""Writer: drafts the report from plan and findings, and revises it once it has been debated."""
