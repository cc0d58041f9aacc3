"""The paper's local classifier."""

from __future__ import annotations

from torch import Tensor

from gkd_plugin.teacher.readouts import Readout, Seen


class Centres(Readout):
    """z_k = φ_T(x) · c_k: the embedding against the class centres (TPAMI section 4.2)."""

    name = "centres"

    def fit(self, centres: Tensor, seen: Seen | None) -> dict[str, Tensor]:  # noqa: ARG002
        """The centres as weight, without a bias."""
        return {"weight": centres, "bias": centres.new_zeros(len(centres))}
