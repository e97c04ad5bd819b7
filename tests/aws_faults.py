"""A proxy before moto's server that makes it behave as EC2 does, and as EC2 does on a bad day.

As EC2 does: a ClientToken is honoured (same request: same answer; another request: IdempotentParameterMismatch),
MaxSize and MinSize of a group are limits, an instance that no group knows is an error. On a bad day: pools without
capacity, calls refused as too many, answers lost after (or requests lost before) they had effect, listings that show
the past.
"""

from __future__ import annotations

import copy
import random
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, NamedTuple

Form = dict[str, str]

EFFECTS = {
    "CreateFleet",
    "RunInstances",
    "TerminateInstances",
    "CreateTags",
    "CreateLaunchTemplate",
    "SetDesiredCapacity",
    "TerminateInstanceInAutoScalingGroup",
    "SetInstanceProtection",
    "CreateAutoScalingGroup",
    "UpdateAutoScalingGroup",
}
STALE = {"DescribeInstances", "DescribeAutoScalingGroups"}
_INSTANCES = "reservationSet/item/instancesSet/item"


class Reply(NamedTuple):
    status: int
    body: bytes


class AwsError(Exception):
    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code)
        self.code, self.message, self.status = code, message, status


class AwsFaults:
    """The proxy. Its public attributes may be changed at any time.

    Attributes:
        throttled: the part of calls that are refused as too many.
        lost: the part of effects whose answer is lost.
        cut: the part of effects that are lost before they happen.
        lose_next: so many of the next effects lose their answer.
        losing: the same by action.
        stale_s: listings show what was so long ago, by `clock`.
        honours_tokens: False: every call is new, as in moto.
        sold_out: (type, zone) or (type, zone, market) without capacity.
        denied: actions that this role may not take.
        room: what is left in a (type, zone); absent: plenty.
        calls: (action, form) of everything that was asked, refused or not.
        peak: most instances alive at once, by pool's tag.
    """

    def __init__(self, target: str, region: str, *, clock: Callable[[], float] = time.monotonic, seed: int = 0) -> None:
        self.throttled = self.lost = self.cut = self.stale_s = 0.0
        self.lose_next = 0
        self.losing: Counter[str] = Counter()
        self.honours_tokens = True
        self.sold_out: set[tuple[str, ...]] = set()
        self.room: dict[tuple[str, str], int] = {}
        self.denied: set[str] = set()
        self.calls: list[tuple[str, Form]] = []
        self.peak: Counter[str] = Counter()
        self._target, self._region, self._clock = target.removeprefix("http://"), region, clock
        self._rng = random.Random(seed)
        self._lock = threading.RLock()
        self._answered: dict[str, tuple[tuple[tuple[str, str], ...], Reply]] = {}
        self._past: dict[str, list[tuple[float, ET.Element]]] = {action: [] for action in STALE}
        self._zone_of: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.remember()
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, action: str) -> int:
        return sum(called == action for called, _ in self.calls)

    def alive(self, pool: str) -> list[str]:
        """Ids of a pool's instances that run now, whatever listings say."""
        return [
            _text(i, "instanceId") for i in self._instances_now() if _alive(i) and _tag(i, "batchline:pool") == pool
        ]

    def duplicates(self, stack: str, wanted: dict[str, int]) -> list[str]:
        """Launches of a stack that have brought more instances than they were to, dead ones included."""
        mine = [i for i in self._instances_now() if _tag(i, "batchline:stack") == stack]
        brought = Counter(_tag(i, "batchline:launch") for i in mine)
        return [launch for launch, n in brought.items() if launch and n > wanted.get(launch, 0)]

    def reset(self) -> None:
        """A good day again."""
        self.throttled = self.lost = self.cut = self.stale_s = 0.0
        self.lose_next, self.honours_tokens = 0, True
        self.sold_out, self.room, self.denied = set(), {}, set()
        self.losing.clear()
        self.calls.clear()
        self.peak.clear()

    def settle(self) -> None:
        """What is so now has been so for long."""
        with self._lock:
            for past in self._past.values():
                past.clear()
            self.remember()

    def remember(self) -> None:
        """Keep what is so now, for listings of the past; call it after a change behind the proxy's back."""
        with self._lock:
            for action, past in self._past.items():
                past.append((self._clock(), self._ask({"Action": action})))
                old = [n for n, (at, _) in enumerate(past) if at < self._clock() - 2 * max(60.0, self.stale_s)]
                del past[: len(old) - 1 if len(old) > 1 else 0]
            _, now = self._past["DescribeInstances"][-1]
            alive = Counter(_tag(i, "batchline:pool") for i in now.iterfind(_INSTANCES) if _alive(i))
            for pool, n in alive.items():
                self.peak[pool] = max(self.peak[pool], n)

    def answer(self, form: Form, headers: dict[str, str]) -> Reply | None:
        """What a call gets; None: nothing, the connection breaks."""
        action, kind = form.get("Action", ""), _kind(form)
        with self._lock:
            self.calls.append((action, form))
            if self._rng.random() < self.throttled:
                if kind == "ec2":
                    return _error(kind, AwsError("RequestLimitExceeded", "Request limit exceeded.", 503))
                return _error(kind, AwsError("Throttling", "Rate exceeded"))
            if action in self.denied:
                text = "You are not authorized to perform this operation."
                return _error(kind, AwsError("UnauthorizedOperation", text, 403))
            if action in EFFECTS and self._rng.random() < self.cut:
                return None
            try:
                reply = self._effect(action, form) if action in EFFECTS else self._look(action, form)
            except AwsError as e:
                return _error(kind, e)
            if action in EFFECTS and form.get("DryRun") != "true":
                self.remember()
                if self.lose_next or self.losing[action] or self._rng.random() < self.lost:
                    self.lose_next = max(0, self.lose_next - 1)
                    self.losing[action] = max(0, self.losing[action] - 1)
                    return None
            return reply

    def forward(self, body: bytes, headers: dict[str, str], path: str = "/", method: str = "POST") -> Reply:
        connection = HTTPConnection(self._target)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return Reply(answer.status, data)

    def _send(self, form: Form) -> Reply:
        """A call of the proxy's own, or one passed on."""
        scope = f"test/20260101/{self._region}/{_kind(form)}/aws4_request"
        headers = {
            "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0",
            "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
        }
        return self.forward(urllib.parse.urlencode(form).encode(), headers)

    def _ask(self, form: Form) -> ET.Element:
        version = "2011-01-01" if "AutoScaling" in form["Action"] else "2016-11-15"
        return _parsed(self._send({"Version": version} | form).body)

    def _instances_now(self) -> list[ET.Element]:
        return list(self._ask({"Action": "DescribeInstances"}).iterfind(_INSTANCES))

    # -- what changes something

    def _effect(self, action: str, form: Form) -> Reply:
        token = form.get("ClientToken", "")
        if not token or not self.honours_tokens or form.get("DryRun") == "true":
            return self._do(action, form)
        asked = tuple(sorted((k, v) for k, v in form.items() if k != "ClientToken"))
        if token in self._answered:
            before, reply = self._answered[token]
            if before != asked:
                text = (
                    "Arguments on this idempotent request are inconsistent with arguments used in previous request(s)."
                )
                raise AwsError("IdempotentParameterMismatch", text)
            return reply
        reply = self._do(action, form)
        self._answered[token] = (asked, reply)
        return reply

    def _do(self, action: str, form: Form) -> Reply:
        if action == "CreateFleet" and form.get("DryRun") != "true":
            return self._fleet(form)
        if action == "RunInstances" and form.get("DryRun") != "true":
            self._sold(form["InstanceType"], self._zone(form), "on_demand")
        if action == "SetDesiredCapacity":
            size, least, most = int(form["DesiredCapacity"]), *self._bounds(form["AutoScalingGroupName"])
            if size > most:
                text = f"New SetDesiredCapacity value {size} is above max value {most} for the AutoScalingGroup."
                raise AwsError("ValidationError", text)
            if size < least:
                text = f"New SetDesiredCapacity value {size} is below min value {least} for the AutoScalingGroup."
                raise AwsError("ValidationError", text)
        if action == "TerminateInstanceInAutoScalingGroup":
            self._leave_group(form)
        return self._send(form)

    def _groups(self) -> list[ET.Element]:
        return list(self._ask({"Action": "DescribeAutoScalingGroups"}).iter("member"))

    def _bounds(self, name: str) -> tuple[int, int]:
        for group in self._groups():
            if _text(group, "AutoScalingGroupName") == name:
                return int(_text(group, "MinSize")), int(_text(group, "MaxSize"))
        raise AwsError("ValidationError", "AutoScalingGroup name not found - null")

    def _leave_group(self, form: Form) -> None:
        id_ = form["InstanceId"]
        for group in self._groups():
            members = [_text(m, "InstanceId") for m in group.iterfind("Instances/member")]
            if id_ in members:
                desired, least = int(_text(group, "DesiredCapacity")), int(_text(group, "MinSize"))
                if form.get("ShouldDecrementDesiredCapacity") == "true" and desired <= least:
                    text = f"Currently, desiredSize equals minSize ({least}). Terminating instance without replacement"
                    raise AwsError("ValidationError", f"{text} will violate group's min size constraint.")
                return
        raise AwsError("ValidationError", f"Instance Id not found - No managed instance found for instance ID: {id_}")

    def _zone(self, form: Form) -> str:
        subnet = form.get("SubnetId", "")
        if subnet and subnet not in self._zone_of:
            for found in self._ask({"Action": "DescribeSubnets"}).iterfind("subnetSet/item"):
                self._zone_of[_text(found, "subnetId")] = _text(found, "availabilityZone")
        return self._zone_of[subnet] if subnet else form.get("Placement.AvailabilityZone", "")

    def _sold(self, kind: str, zone: str, market: str) -> None:
        if {(kind, zone), (kind, zone, market)} & self.sold_out or self.room.get((kind, zone)) == 0:
            text = (
                f"We currently do not have sufficient {kind} capacity in the Availability Zone you requested ({zone})."
            )
            raise AwsError("InsufficientInstanceCapacity", text, 500)

    def _fleet(self, form: Form) -> Reply:
        """Pool by pool in the order given, as far as there is capacity: moto knows of none, so it gets one a call."""
        prefix = "LaunchTemplateConfigs.1.Overrides."
        fixed = {k: v for k, v in form.items() if not k.startswith((prefix, "TargetCapacitySpecification.", "Client"))}
        overrides: dict[str, Form] = {}
        for key, value in form.items():
            if key.startswith(prefix):
                n, _, name = key.removeprefix(prefix).partition(".")
                overrides.setdefault(n, {})[name] = value
        total = int(form["TargetCapacitySpecification.TotalTargetCapacity"])
        bought = int(form.get("TargetCapacitySpecification.OnDemandTargetCapacity", "0"))
        instances, errors = list[ET.Element](), list[ET.Element]()
        for market, wanted in (("on_demand", bought), ("spot", total - bought)):
            left = wanted
            for override in [overrides[n] for n in sorted(overrides, key=int)] if wanted else ():
                kind = override["InstanceType"]
                zone = override.get("AvailabilityZone") or self._zone(override)
                taken = 0
                try:
                    self._sold(kind, zone, market)
                    taken = min(left, self.room.get((kind, zone), left))
                except AwsError as e:
                    errors.append(_fleet_error(e, override, market))
                if taken:
                    one = {f"{prefix}1.{k}": v for k, v in override.items()}
                    capacity = {
                        "TotalTargetCapacity": str(taken),
                        "DefaultTargetCapacityType": "spot" if market == "spot" else "on-demand",
                    }
                    sent = fixed | one | {f"TargetCapacitySpecification.{k}": v for k, v in capacity.items()}
                    brought = _parsed(self._send(sent).body).iterfind("fleetInstanceSet/item")
                    instances += brought
                    if (kind, zone) in self.room:
                        self.room[kind, zone] -= taken
                left -= taken
                if not left:
                    break
        root = ET.Element("CreateFleetResponse")
        ET.SubElement(root, "fleetId").text = f"fleet-{self._rng.getrandbits(64):016x}"
        ET.SubElement(root, "errorSet").extend(errors)
        ET.SubElement(root, "fleetInstanceSet").extend(instances)
        return Reply(200, ET.tostring(root))

    # -- what only looks

    def _look(self, action: str, form: Form) -> Reply:
        if action not in STALE:
            return self._send(form)
        past = self._past[action]
        then = self._clock() - self.stale_s
        seen = [root for at, root in past if at <= then] or [past[0][1]]
        root = self._ask({"Action": action}) if self.stale_s == 0 else copy.deepcopy(seen[-1])
        return _listing(root, form) if action == "DescribeInstances" else Reply(200, ET.tostring(root))


def _handler(proxy: AwsFaults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version: ClassVar[str] = "HTTP/1.1"
        wbufsize = -1  # an answer in one packet: two would wait 40 ms for an acknowledgement

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            form = dict(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True))
            if "Action" in form and _kind(form):
                reply = proxy.answer(form, dict(self.headers))
            else:  # another service, or another protocol
                reply = proxy.forward(body, dict(self.headers), self.path)
            if reply is None:
                self.close_connection = True
                return
            self.send_response_only(reply.status)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *args: object) -> None:
            """Quiet."""

    return Handler


def _kind(form: Form) -> str:
    return {"2016-11-15": "ec2", "2011-01-01": "autoscaling"}.get(form.get("Version", ""), "")


def _parsed(body: bytes) -> ET.Element:
    root = ET.fromstring(body)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2] or element.tag
    return root


def _text(element: ET.Element, path: str) -> str:
    return element.findtext(path) or ""


def _tag(instance: ET.Element, key: str) -> str:
    return next((_text(t, "value") for t in instance.iterfind("tagSet/item") if _text(t, "key") == key), "")


def _alive(instance: ET.Element) -> bool:
    return _text(instance, "instanceState/name") in ("pending", "running")


def _error(kind: str, e: AwsError) -> Reply:
    inner = f"<Error><Code>{e.code}</Code><Message>{e.message}</Message></Error>"
    if kind == "ec2":
        return Reply(e.status, f"<Response><Errors>{inner}</Errors><RequestID>r</RequestID></Response>".encode())
    return Reply(e.status, f"<ErrorResponse>{inner}<RequestId>r</RequestId></ErrorResponse>".encode())


def _fleet_error(e: AwsError, override: Form, market: str) -> ET.Element:
    item = ET.Element("item")
    ET.SubElement(item, "errorCode").text = e.code
    ET.SubElement(item, "errorMessage").text = e.message
    ET.SubElement(item, "lifecycle").text = "spot" if market == "spot" else "on-demand"
    told = ET.SubElement(ET.SubElement(item, "launchTemplateAndOverrides"), "overrides")
    for key, value in override.items():
        ET.SubElement(told, key[0].lower() + key[1:]).text = value
    return item


def _listing(root: ET.Element, form: Form) -> Reply:
    """DescribeInstances of a remembered answer: filters and pages are ours to make."""
    filters: dict[str, tuple[str, set[str]]] = {}
    for key, value in form.items():
        if key.startswith("Filter.") and key.endswith(".Name"):
            n = key.split(".")[1]
            filters[n] = (value, {v for k, v in form.items() if k.startswith(f"Filter.{n}.Value.")})
    reservations = root.find("reservationSet")
    assert reservations is not None
    kept: list[ET.Element] = []
    for reservation in list(reservations):
        instances = reservation.find("instancesSet")
        assert instances is not None
        for instance in list(instances):
            if not all(_matches(instance, name, values) for name, values in filters.values()):
                instances.remove(instance)
        reservations.remove(reservation)
        if len(instances):
            kept.append(reservation)
    start, size = int(form.get("NextToken") or 0), int(form.get("MaxResults") or 1000)
    reservations.extend(kept[start : start + size])
    for token in list(root.iterfind("nextToken")):
        root.remove(token)
    if start + size < len(kept):
        ET.SubElement(root, "nextToken").text = str(start + size)
    return Reply(200, ET.tostring(root))


def _matches(instance: ET.Element, name: str, values: set[str]) -> bool:
    if name.startswith("tag:"):
        return _tag(instance, name.removeprefix("tag:")) in values
    path: dict[str, Any] = {"instance-state-name": "instanceState/name", "instance-id": "instanceId"}
    return _text(instance, path[name]) in values
