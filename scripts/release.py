#!/usr/bin/env python3
"""Releases an image to every function: without traffic, then to a few of the requests, then to all. Needs gcloud and Python alone.

    release.py record   --state FILE              which revisions serve now; done before anything is changed
    release.py deploy   --image IMAGE --tag TAG   a new revision of every function, without traffic; the nightly backup's new image
    release.py smoke    --image IMAGE --tag TAG   each new revision is asked, by a job inside the project
    release.py canary   --state FILE --tag TAG    10, 50, 100 % of the traffic, each watched; what goes wrong is rolled back
    release.py rollback --state FILE              all traffic back to the recorded revisions
    release.py rollback                           the same without a record: back to the revisions before the newest

A function is a folder of functions/ with a function.yaml. Google Cloud is spoken to through gcloud and Monitoring's query API.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from string import Template
from typing import Any

FUNCTIONS = Path(__file__).resolve().parents[1] / "functions"
PLACEHOLDER = "us-docker.pkg.dev/cloudrun/container/hello"
"""What a service runs from when Terraform made it until its first release (infra/services.tf)."""
STAGES = (10, 50, 100)
"""Percent of the traffic that the new revisions get, one after the other."""
WATCH_SECONDS = 15 * 60
LOOK_SECONDS = 60
AT_ONCE = 8
_GCLOUD_SECONDS = 900
_QUERY_SECONDS = 30
_FAILED_LOOKS = 3
"""Looks in a row that may go unanswered: after that nobody is watching, which is no reason to go on."""

# A metric made from the log could be any resource's: Monitoring answers only when it is told which.
_IN_FUNCTIONS = 'monitored_resource="cloud_run_revision"'
_NEW = f'{_IN_FUNCTIONS},revision_name=~".*-$suffix"'
_COUNT = "run_googleapis_com:request_count"
_ANSWERS = "logging_googleapis_com:user_agent_team_answer_seconds_bucket"
_FAILED = f"(sum(increase(logging_googleapis_com:user_agent_team_workflow_failed_sum{{{_IN_FUNCTIONS}}}[10m])) or vector(0))"
_SUCCEEDED = f"(sum(increase(logging_googleapis_com:user_agent_team_workflow_succeeded_sum{{{_IN_FUNCTIONS}}}[10m])) or vector(0))"

LIMITS: Mapping[str, tuple[Template, float]] = {
    "error rate of the new revisions, %": (
        Template(
            f'100 * (sum(rate({_COUNT}{{{_NEW},response_code_class="5xx"}}[5m])) or vector(0)) / sum(rate({_COUNT}{{{_NEW}}}[5m]))'
        ),
        5.0,
    ),
    "latency of the new gateway (95th percentile), ms": (
        Template(f'1000 * histogram_quantile(0.95, sum by (le) (rate({_ANSWERS}{{{_NEW},service_name="gateway"}}[5m])))'),
        5000.0,
    ),
    "workflows that failed, %": (Template(f"100 * {_FAILED} / ({_FAILED} + {_SUCCEEDED})"), 30.0),
}
"""What is watched, in PromQL, and the value above which the release is bad."""


class Failure(Exception):
    """The release cannot go on; one line for the person who started it."""


class Release:
    """One project's services. Every call of gcloud is logged before it is made."""

    def __init__(self, *, project: str, region: str, monitoring: str, look_seconds: float = LOOK_SECONDS) -> None:
        self._where = ["--project", project, "--region", region, "--quiet"]
        self._monitoring = f"{monitoring}/v1/projects/{project}/location/global/prometheus/api/v1/query"
        self._look_seconds = look_seconds
        self.services = {folder.name.replace("_", "-"): folder.name for folder in _functions()}

    def record(self) -> dict[str, str]:
        """The revision that serves each service now; a service that has served nothing but Terraform's placeholder has none."""
        serving = {service: revision for service, revision in self._each(self.services, self._serving) if revision is not None}
        say(f"recorded {len(serving)} of {len(self.services)} services")
        return serving

    def deploy(self, image: str, tag: str) -> None:
        """A new revision of every function under `tag`, without traffic, and the backup job."""
        suffix = _suffix(tag)

        def one(service: str) -> None:
            revision = ["--image", image, "--no-traffic", "--tag", tag, "--revision-suffix", suffix]
            target = ["--update-env-vars", f"FUNCTION_TARGET={self.services[service]}"]
            self._gcloud("run", "deploy", service, *revision, *target)

        list(self._each(self.services, one))
        self._gcloud("run", "jobs", "update", "backup", "--image", f"{image}-tools")
        say(f"deployed {len(self.services)} services as {tag}, without traffic")

    def smoke(self, image: str, tag: str) -> None:
        """Each new revision is asked before anybody's request gets to it: from inside, since nobody else is let in."""
        self._gcloud("run", "jobs", "update", "smoke", "--image", f"{image}-tools", f"--args=smoke,--revisions,{tag}")
        self._gcloud("run", "jobs", "execute", "smoke", "--wait")
        say(f"every revision of {tag} answered")

    def canary(self, tag: str, before: Mapping[str, str], *, watch_seconds: float = WATCH_SECONDS) -> None:
        """More and more traffic for `tag`. Raises Failure after it rolled everything back because something was bad.

        A service that is not in `before` gets all of it at once: the rest would go to the placeholder, which answers 200 and loses
        what it was sent.
        """
        try:
            self._send(f"--to-tags={tag}=100", self.services.keys() - before.keys())
            for percent in STAGES:
                self._send(f"--to-tags={tag}={percent}", before)
                say(f"{percent} % of the traffic goes to {tag}; watching for {watch_seconds / 60:g} minutes")
                self._watch(tag, watch_seconds)
        except (Failure, KeyboardInterrupt) as reason:
            why = str(reason) or "interrupted"
            if not before:
                raise Failure(f"{why}; there is nothing to go back to, since nothing served before") from reason
            say(f"rolling back: {why}")
            self.rollback(before)
            raise Failure(f"rolled back: {why}") from reason
        say(f"all traffic goes to {tag}")

    def rollback(self, before: Mapping[str, str] | None = None) -> None:
        """All traffic to the revisions of `before`, or to those before the newest. One that fails keeps no other from it."""
        if before is None:
            before = {service: revision for service, revision in self._each(self.services, self._previous) if revision is not None}
        if not before:
            raise Failure("there is no revision to go back to")
        failed = []
        with ThreadPoolExecutor(AT_ONCE) as pool:
            moves = {
                service: pool.submit(self._route, f"--to-revisions={revision}=100", service) for service, revision in before.items()
            }
        for service, move in moves.items():
            if (error := move.exception()) is not None:
                failed.append(f"{service}: {error}")
        if failed:
            raise Failure("not rolled back, do it by hand: " + "; ".join(failed))
        say(f"rolled back {len(before)} services")

    def _watch(self, tag: str, seconds: float) -> None:
        unanswered, left = 0, seconds
        while left > 0:
            time.sleep(min(self._look_seconds, left))
            left -= self._look_seconds
            try:
                self._look(tag)
                unanswered = 0
            except (urllib.error.URLError, TimeoutError, ValueError, KeyError) as error:
                unanswered += 1
                say(f"Monitoring did not answer ({type(error).__name__})")
                if unanswered >= _FAILED_LOOKS:
                    raise Failure(
                        f"Monitoring did not answer {unanswered} times in a row, so nobody would notice a bad release"
                    ) from error

    def _look(self, tag: str) -> None:
        for what, (query, limit) in LIMITS.items():
            value = self._ask(query.substitute(suffix=_suffix(tag)))
            if value is not None and value > limit:
                raise Failure(f"{what}: {value:.1f} is above {limit:g}")

    def _ask(self, query: str) -> float | None:
        """The query's value now; None where there is nothing yet."""
        token = self._gcloud("auth", "print-access-token", where=False).strip()
        asked = urllib.request.Request(
            f"{self._monitoring}?{urllib.parse.urlencode({'query': query})}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(asked, timeout=_QUERY_SECONDS) as answer:
            result = json.load(answer)["data"]["result"]
        value = float(result[0]["value"][1]) if result else None
        return None if value is None or value != value else value  # 0 of 0 requests is no number

    def _serving(self, service: str) -> str | None:
        found = self._describe(service)
        if _is_placeholder(found.get("spec", {}).get("template", {})):
            return None
        traffic = found.get("status", {}).get("traffic", [])
        most = max(traffic, key=lambda one: one.get("percent", 0), default={})
        return most.get("revisionName") if most.get("percent", 0) else None

    def _previous(self, service: str) -> str | None:
        listed = json.loads(
            self._gcloud("run", "revisions", "list", "--service", service, "--sort-by=~metadata.creationTimestamp", "--format=json")
        )
        names = [one["metadata"]["name"] for one in listed if not _is_placeholder(one)]
        serving = self._serving(service)
        older = names[names.index(serving) + 1 :] if serving in names else names[1:]
        return older[0] if older else None

    def _describe(self, service: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self._gcloud("run", "services", "describe", service, "--format=json"))
        return found

    def _send(self, to: str, services: Iterable[str]) -> None:
        list(self._each(services, lambda service: self._route(to, service)))

    def _route(self, to: str, service: str) -> None:
        self._gcloud("run", "services", "update-traffic", service, to)

    def _each(self, services: Iterable[str], call: Callable[[str], Any]) -> Iterable[tuple[str, Any]]:
        names = list(services)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from zip(names, pool.map(call, names), strict=True)

    def _gcloud(self, *arguments: str, where: bool = True) -> str:
        command = ["gcloud", *arguments, *(self._where if where else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_GCLOUD_SECONDS, check=False)
        except OSError as error:
            raise Failure("gcloud is not on the path; install the Google Cloud SDK") from error
        except subprocess.TimeoutExpired as error:
            raise Failure(f"gcloud {' '.join(arguments[:4])} took longer than {_GCLOUD_SECONDS} s") from error
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise Failure(f"gcloud {' '.join(arguments[:4])} failed: {reason}")
        return done.stdout


def say(line: str) -> None:
    """One line of the build's log."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _functions() -> list[Path]:
    return sorted(file.parent for file in FUNCTIONS.glob("*/function.yaml"))


def _is_placeholder(revision: Mapping[str, Any]) -> bool:
    return [one.get("image") for one in revision.get("spec", {}).get("containers", [])] == [PLACEHOLDER]


def _suffix(tag: str) -> str:
    return tag.removeprefix("c-")


def main(arguments: list[str] | None = None) -> int:
    """0 when it is done, 1 when it failed or was rolled back, 2 for a wrong call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["record", "deploy", "smoke", "canary", "rollback"])
    parser.add_argument("--project", required=True)
    parser.add_argument("--region", required=True)
    parser.add_argument("--state", type=Path, help="file of the recorded revisions")
    parser.add_argument("--image", help="image by tag or digest")
    parser.add_argument("--tag", help="tag of the new revisions: c-<short commit id>")
    parser.add_argument("--watch-seconds", type=float, default=WATCH_SECONDS, help="how long each stage is watched")
    parser.add_argument("--look-seconds", type=float, default=LOOK_SECONDS, help="time between two looks")
    parser.add_argument("--monitoring", default="https://monitoring.googleapis.com", help="address of the Monitoring API")
    given = parser.parse_args(arguments)
    needed = {
        "record": ["state"],
        "deploy": ["image", "tag"],
        "smoke": ["image", "tag"],
        "canary": ["state", "tag"],
        "rollback": [],
    }[given.verb]
    if missing := [f"--{name}" for name in needed if getattr(given, name) is None]:
        parser.error(f"{given.verb} needs {' and '.join(missing)}")
    try:
        release = Release(project=given.project, region=given.region, monitoring=given.monitoring, look_seconds=given.look_seconds)
        match given.verb:
            case "record":
                given.state.write_text(json.dumps(release.record(), indent=1), encoding="utf-8")
            case "deploy":
                release.deploy(given.image, given.tag)
            case "smoke":
                release.smoke(given.image, given.tag)
            case "canary":
                release.canary(given.tag, _read(given.state), watch_seconds=given.watch_seconds)
            case _:
                release.rollback(None if given.state is None else _read(given.state))
    except Failure as failure:
        sys.stderr.write(f"error: {failure}\n")
        return 1
    return 0


def _read(file: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"{file} cannot be read ({type(error).__name__}); say record before deploy") from error
    return found


if __name__ == "__main__":
    sys.exit(main())
