"""What is read out of a device's UDI, and what never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.transform.udi import device_identifier, device_lot, device_summary

SERIAL = "SERIAL77X"


@pytest.mark.parametrize(
    ("carrier", "identifier"),
    [
        ({"deviceIdentifier": "00812345678901"}, "00812345678901"),
        ({"deviceIdentifier": "H123ABC0"}, "H123ABC0"),
        ({"carrierHRF": f"(01)00812345678901(21){SERIAL}"}, "00812345678901"),
        ({"carrierHRF": f"(21){SERIAL}(01)00812345678901"}, "00812345678901"),
        ({"carrierHRF": f"010081234567890121{SERIAL}"}, "00812345678901"),
        ({"carrierHRF": f"+H123PART0/S{SERIAL}/16D20130202C"}, "H123PART0"),
        ({"carrierHRF": f"=/A9999XYZ100T0944=,{SERIAL}"}, "A9999XYZ100T0944"),
        ({"deviceIdentifier": f"(01)00812345678901(21){SERIAL}"}, "00812345678901"),
        ({"deviceIdentifier": f"(21){SERIAL}"}, None),
        ({"carrierHRF": SERIAL}, None),
        ({"carrierHRF": f"(21){SERIAL}"}, None),
        ({"carrierHRF": ""}, None),
        ({}, None),
    ],
)
def test_device_identifiers(carrier: dict[str, str], identifier: str | None) -> None:
    device = {"udiCarrier": [carrier], "serialNumber": SERIAL}
    assert device_identifier(device) == identifier
    assert SERIAL not in str(device_summary(device))


def test_the_first_carrier_that_can_be_read_counts() -> None:
    carriers = [{"carrierHRF": "unreadable"}, {"carrierHRF": "(01)00812345678901"}, {"deviceIdentifier": "2"}]
    assert device_identifier({"udiCarrier": carriers}) == "00812345678901"


@pytest.mark.parametrize(
    ("device", "lot"),
    [
        ({"lotNumber": "L1", "udiCarrier": [{"carrierHRF": "(10)L2"}]}, "L1"),
        ({"udiCarrier": [{"carrierHRF": f"(01)00812345678901(10)L2(21){SERIAL}"}]}, "L2"),
        ({"udiCarrier": [{"carrierHRF": f"(01)00812345678901(21){SERIAL}"}]}, None),
        ({}, None),
    ],
)
def test_lots(device: dict[str, object], lot: str | None) -> None:
    assert device_lot(device) == lot


@given(st.text(max_size=60), st.sampled_from(["(21)", "/S", "=,"]))
def test_whatever_stands_behind_a_serial_number_is_left_out(text: str, mark: str) -> None:
    carrier = {"carrierHRF": f"{text}{mark}{SERIAL}"}
    assert SERIAL not in (device_identifier({"udiCarrier": [carrier]}) or "")
