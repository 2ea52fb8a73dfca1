import time
from dataclasses import replace

from pipeline.quality.deep.model import DeepRequest
from pipeline.quality.deep.run import verify_deep
from pipeline.runtime import Runtime
from pipeline.settings import SiteSettings
from tests.integration import test_group_sequences as tg
from tests.integration import test_sequences as ts
from tests.integration.support import Warehouse


def params(f):
    for m in f.pytestmark:
        if m.name == "parametrize":
            return m.args[1]


def test_worlds(warehouse: Warehouse) -> None:
    n = 0
    sites = {}
    names = []
    for i, (exports, order) in enumerate(params(ts.test_histories_that_are_easily_got_wrong)):
        names.append((f"h{i}", exports, order, False))
    for i, (exports, order) in enumerate(params(tg.test_histories_of_groups_that_are_easily_got_wrong)):
        names.append((f"g{i}", exports, order, True))
    for name, *_, g in names:
        sites[name] = SiteSettings(
            name=name, **({"vanished": "delete", "left_group": "delete", "empty_when_missing": tg.TYPES} if g else {})
        )
    settings = warehouse.runtime.settings.model_copy(update={"sites": sites})
    w = replace(warehouse, runtime=Runtime(settings, warehouse.runtime.clock))
    w.assert_whole = lambda: None
    from pipeline.replay import ingest_with_follow_ups

    for name, exports, order, g in names:
        if g:
            h = tg.GroupHistory(w)
            real = w.land
            import functools

            h.warehouse = replace(w)
            h.warehouse.land = functools.partial(real, site=name)
            landed = [h._land(e) for e in exports]
            h.warehouse.loads and setattr(w, "loads", w.loads + len(exports) + 1)
        else:
            landed = [w.land(ts.files(e), name) for e in exports]
        for place in order:
            ingest_with_follow_ups(w.runtime, settings.site(name), landed[place])
    t = time.time()
    for request in (DeepRequest(persons=None), DeepRequest(persons=200)):
        report = verify_deep(w.runtime, request)
        print(time.time() - t, report)
        for d in report.differences:
            print(d.told())
            if d.row_ids:
                print(
                    "   ",
                    w.rows(
                        "select site, resource_type, resource_id from row_source where cdm_table=%s and row_id = any(%s)",
                        d.table,
                        list(d.row_ids),
                    ),
                )
            print(
                "   ",
                w.rows(
                    "select site, resource_type, resource_id from resource_state join site_resource_type using (site_resource_type_id) where surrogate_id = any(%s)",
                    list(d.resources),
                ),
            )
    print([(a, b, c) for a, b, c, d in names])
