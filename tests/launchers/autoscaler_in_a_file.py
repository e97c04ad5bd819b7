"""The autoscaler with one more provider, `fake`: its instances are rows of a file."""

import runpy

from autoscaler import providers

providers.ADAPTERS["fake"] = providers.Adapter("fake_provider", "FakeProvider")
runpy.run_module("autoscaler", run_name="__main__", alter_sys=True)
