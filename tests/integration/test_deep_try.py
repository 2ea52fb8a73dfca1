from collections import defaultdict
import pytest
from pipeline.sandbox.generator import generate
from pipeline.quality.deep.model import DeepRequest
from pipeline.quality.deep.run import verify_deep
from tests.integration.support import START, Warehouse
import time

def test_sandbox(warehouse: Warehouse) -> None:
    for day in (0, 1, 2, 30):
        files = defaultdict(list)
        for kind, line in generate(40, 3, START.date(), day):
            files[kind].append(line.rstrip(b"\n"))
        files.pop("OperationOutcome", None)
        warehouse.load(files)
    print(warehouse.rows("select resource_type, outcome, count(*) from resource_state join site_resource_type using(site_resource_type_id) group by 1,2"))
    for request in (DeepRequest(persons=None), DeepRequest(persons=5), DeepRequest(persons=None, site="one"), DeepRequest(persons=10, seed=4)):
        t=time.time()
        report = verify_deep(warehouse.runtime, request)
        print(time.time()-t, report)
        for d in report.differences: print(d.told())
