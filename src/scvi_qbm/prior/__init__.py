r"""The prior over binary codes, and the negative phase that trains it.

.. math:: p(z) = e^{-E(z)} / Z, \qquad E(z) = h^\top z + \tfrac{1}{2} z^\top W z, \quad
          z \in \{0, 1\}^n.

For a factorised posterior :math:`q(z) = \prod_l \mathrm{Bernoulli}(q_l)` the divergence is exact,
:math:`KL = \sum_l [q_l \log q_l + (1-q_l)\log(1-q_l)] + E(q) + \log Z`, because W has no diagonal.
The machine's own gradient is that of :math:`E(q) - \langle E \rangle_p`: the second term, the
negative phase, needs samples of p and gets them from persistent chains. After training the
machine is fitted once more to an encoder at rest, see :func:`fit_prior`.

:class:`LabelledPrior` has label units beside those of the code.
"""

from .bernoulli import BernoulliPrior
from .boltzmann import BoltzmannPrior
from .fit import fit_prior
from .label_fit import fit_labels
from .labelled import LabelledPrior
from .log_z import NegativePhaseReport
from .negative_phase import NegativePhase

__all__ = [
    "BernoulliPrior", "BoltzmannPrior", "LabelledPrior", "NegativePhase", "NegativePhaseReport",
    "fit_labels", "fit_prior",
]  # fmt: skip
