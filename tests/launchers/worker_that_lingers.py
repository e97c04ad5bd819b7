"""The worker, lingering at each call of LINGER_IN=module:Class.method for LINGER_S seconds; it tells its log so."""

import importlib
import os
import runpy
import sys
import time

_module, _, _name = os.environ["LINGER_IN"].partition(":")
_class, _, _method = _name.partition(".")
_owner = getattr(importlib.import_module(_module), _class)
_call = getattr(_owner, _method)


def lingering(*args, **kwargs):
    print("lingers", file=sys.stderr, flush=True)
    time.sleep(float(os.environ["LINGER_S"]))
    return _call(*args, **kwargs)


setattr(_owner, _method, lingering)
runpy.run_module("workers", run_name="__main__", alter_sys=True)
