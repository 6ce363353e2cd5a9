"""Google Secret Manager: what a function is told when it starts, and where its signing keys are."""

from shared.secrets.manager import SecretHead, SecretManager, SecretVersion

__all__ = ["SecretHead", "SecretManager", "SecretVersion"]
