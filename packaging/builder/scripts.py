"""Maintainer scripts: the functions of packaging/linux in front of each one's own few lines."""

from __future__ import annotations

from pathlib import Path

from builder.product import LINUX, PRODUCTS, Product

DROP_IN = "50-holdfast.conf"  # what `agentctl protect` writes into a unit's .d folder


def lifecycle(product: Product) -> str:
    """The shared functions and the product's own, filled in."""
    (other,) = (it for it in PRODUCTS.values() if it.package != product.package)
    values = {
        "PACKAGE": product.package,
        "SERVICE": product.service,
        "UNITS": " ".join(product.enabled_units()),
        "SETTINGS": product.settings,
        "ACCOUNT": product.account,
        "OTHER": other.package,
        "OTHER_SETTINGS": other.settings,
        "DROP_IN": DROP_IN,
    }
    parts = (LINUX / "lifecycle.sh", product.script)
    return filled("\n".join(part.read_text(encoding="utf-8") for part in parts), values)


def rendered(script: Path, product: Product) -> str:
    """The shell script `script`, its line `#LIFECYCLE#` replaced by the functions."""
    return script.read_text(encoding="utf-8").replace("#LIFECYCLE#\n", lifecycle(product))


def filled(text: str, values: dict[str, str]) -> str:
    """`text` with each @NAME@ replaced."""
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text
