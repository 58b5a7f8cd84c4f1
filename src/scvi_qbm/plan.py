"""Training plan: one Adam, two parameter groups, and log Z kept up to date."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from scvi import REGISTRY_KEYS
from scvi.train import TrainingPlan

from scvi_qbm.module import QBMVAE
from scvi_qbm.prior import NegativePhase, NegativePhaseReport
from scvi_qbm.recipes import get_recipe

__all__ = ["QBMTrainingPlan"]

_DEFAULT = get_recipe("default").plan
_LOOK_EVERY = 50
# Share of a machine's draws below which they have hardly mattered; distance of those that have,
# in units of that by chance, above which they are wrong.
_FORGOTTEN, _WRONG = 0.1, 3.0
_PRIOR_KEY, _PLAN_KEY = "scvi_qbm_prior", "scvi_qbm_plan"


class QBMTrainingPlan(TrainingPlan):
    """scvi-tools' training plan with a second learning rate for the Boltzmann machine.

    The prior's parameters form a group of their own (named ``bm``) of the one optimiser, so
    gradient clipping, accumulation, mixed precision and schedulers work as ever. log Z is
    estimated before every validation, every ``log_z_every_n_epochs`` epochs, and afresh at the
    end of training.

    Parameters
    ----------
    module
        A :class:`~scvi_qbm.module.QBMVAE`.
    lr
        Learning rate of encoder and decoder.
    bm_lr
        Learning rate of the Boltzmann machine; ``lr / 5`` by default.
    bm_weight_decay
        Weight decay on the Boltzmann machine.
    eps
        Adam's epsilon. scvi-tools' 0.01 starves discrete latents (docs/training.md).
    n_epochs_kl_warmup
        Epochs over which the KL weight rises; the machine's own gradient is not scaled by it.
    log_z_every_n_epochs
        Epochs between estimates of log Z where validation does not bring them.
    **kwargs
        As :class:`scvi.train.TrainingPlan`.
    """

    def __init__(
        self,
        module: QBMVAE,
        *,
        lr: float = _DEFAULT["lr"],
        bm_lr: float | None = None,
        bm_weight_decay: float = 0.0,
        eps: float = _DEFAULT["eps"],
        n_epochs_kl_warmup: int | None = _DEFAULT["n_epochs_kl_warmup"],
        log_z_every_n_epochs: int = 10,
        **kwargs: Any,
    ) -> None:
        # A second call of train() finds the module in eval mode, and Lightning leaves it there:
        # no dropout, frozen batch norm, no gradient for the prior. A frozen prior means query
        # mapping (scArches), which keeps its frozen batch norm.
        if not module.prior.is_frozen:
            module.train()
        else:
            # scArches masks gradients of frozen weights to 0, which Adam's decay does not respect.
            kwargs.setdefault("weight_decay", 0.0)
        super().__init__(
            module,
            lr=lr,
            eps=eps,
            n_epochs_kl_warmup=n_epochs_kl_warmup,
            **kwargs,
        )
        self.bm_lr = lr / 5 if bm_lr is None else bm_lr
        self.bm_weight_decay = bm_weight_decay
        self.log_z_every_n_epochs = log_z_every_n_epochs
        self._log_z_epoch = -1
        self._chains: list[dict[str, Any]] | None = None
        self._bad_reports = 0

    def get_optimizer_creator(self) -> Any:
        create = super().get_optimizer_creator()
        return lambda params: create(self._parameter_groups(params))

    def _machine_parameters(self) -> Iterable[torch.nn.Parameter]:
        """What learns at ``bm_lr``."""
        return self.module.prior.parameters()

    def _parameter_groups(self, params: Iterable[torch.nn.Parameter]) -> list[dict[str, Any]]:
        prior = {id(p) for p in self._machine_parameters()}
        groups: dict[str, dict[str, Any]] = {
            "vae": {"name": "vae", "params": []},
            "bm": {"name": "bm", "params": []},
        }
        for parameter in params:
            groups["bm" if id(parameter) in prior else "vae"]["params"].append(parameter)
        if self.optimizer_name != "Custom":
            groups["bm"] |= {"lr": self.bm_lr, "weight_decay": self.bm_weight_decay}
        # Adam refuses an empty group, which a frozen prior (query mapping) would be.
        return [group for group in groups.values() if group["params"]]

    @property
    def _negative_phase(self) -> NegativePhase | None:
        """None where the prior needs none: it is frozen, or its units are independent."""
        return None if self.module.prior.is_frozen else self.module.negative_phase

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self._negative_phase is not None:
            self._negative_phase.submit()
        try:
            out = super().training_step(batch, batch_idx)
        except ValueError as error:
            # torch's distributions refuse NaN before there is a loss.
            cause = self._not_finite(batch)
            if cause is None:
                raise
            raise self._diverged(cause) from error
        loss = out["loss"] if isinstance(out, dict) else out
        # Elsewhere a look at the loss would stop the accelerator's queue.
        if loss.device.type == "cpu" or batch_idx % _LOOK_EVERY == 0:
            if not torch.isfinite(loss):
                cause = self._not_finite(batch)
                raise self._diverged(
                    cause or "Data and weights are finite, but the likelihood overflowed."
                )
        return out

    def _not_finite(self, batch: dict[str, torch.Tensor]) -> str | None:
        for key, x in batch.items():
            if isinstance(x, torch.Tensor) and not torch.isfinite(_dense(x)).all():
                what = "data" if key == REGISTRY_KEYS.X_KEY else f"covariates ({key!r})"
                return f"The {what} have NaN or infinite values in this minibatch."
        if not all(torch.isfinite(p).all() for p in self.module.parameters()):
            return "Weights are not finite: an earlier step diverged."
        return None

    def _diverged(self, cause: str) -> ValueError:
        return ValueError(
            f"The loss is not finite in epoch {self.current_epoch}, step {self.global_step}. "
            f"{cause} Try a lower learning rate (plan_kwargs={{'lr': {self.lr / 5:g}}}), "
            "gradient_clip_val=10 in train(), or look for cells with extreme counts."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[_PLAN_KEY] = {
            "log_z_epoch": self._log_z_epoch,
            "bad_reports": self._bad_reports,
        }
        if self.module.negative_phase is not None:
            mine, share = self.module.negative_phase.state(), self.trainer.strategy.broadcast
            checkpoint[_PRIOR_KEY] = [share(mine, k) for k in range(self.trainer.world_size)]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.trainer.precision == "64-true":
            self.double()  # Lightning does so only after it has put the weights into float32
        self._chains = checkpoint.get(_PRIOR_KEY)
        counted = checkpoint.get(_PLAN_KEY, {})
        self._log_z_epoch = counted.get("log_z_epoch", -1)
        self._bad_reports = counted.get("bad_reports", 0)

    def _load_chains(self) -> None:
        """Once, and after the weights, whose loading makes the prior forget its chains."""
        chains, self._chains = self._chains, None
        if chains is None:
            return
        if len(chains) == self.trainer.world_size:
            self.module.negative_phase.load(chains[self.trainer.global_rank], stream=0)
        else:
            self.module.negative_phase.load(chains[0])

    def on_train_start(self) -> None:
        super().on_train_start()
        self._load_chains()

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self._load_chains()

    def on_validation_epoch_start(self) -> None:
        self._refresh_log_z()

    def on_train_epoch_end(self) -> None:
        due = (self.current_epoch + 1) % self.log_z_every_n_epochs == 0
        if due and self._log_z_epoch != self.current_epoch:
            self._refresh_log_z()

    def on_train_end(self) -> None:
        super().on_train_end()
        if self._negative_phase is None:
            return
        report = self._negative_phase.refresh_log_z(final=True)
        if report.machine_share is not None:
            self._judge_machine(report)
        if report.chains_mix:
            return
        # Without a step since the last estimate, two estimates of the same log Z disagree, one
        # from kept chains and one from fresh ones: that is never noise of the first epochs.
        if report.n_steps == 0 or self._bad_reports == 2:
            self._warn(report)

    def _refresh_log_z(self) -> None:
        self._log_z_epoch = self.current_epoch
        if self._negative_phase is None:
            return
        report = self._negative_phase.refresh_log_z()
        known = {k: v for k, v in report._asdict().items() if v is not None}
        self.log_dict(known, on_step=False, on_epoch=True, sync_dist=self.use_sync_dist)
        # One or two bad reports may be noise or the rush of the first epochs; three are not.
        self._bad_reports = 0 if report.chains_mix else self._bad_reports + 1
        if self._bad_reports == 3:
            self._warn(report)

    def _judge_machine(self, report: NegativePhaseReport) -> None:
        """Say of a machine that it did not matter, or that it did and is wrong."""
        name, share = self.module.negative_phase.sampler.source.name, report.machine_share
        if share < _FORGOTTEN:
            warnings.warn(
                f"{name!r} had no influence on the prior: after the Gibbs sweeps {share:.1%} of "
                f"its {report.n_draws:.0f} draws is left, so another machine, or none, would have "
                "given much the same model. To let it decide, draw at every step and do not "
                "sweep: sampler='corrected', "
                "sampler_options={'sampler': ..., 'redraw_every': 1, 'n_burn_in': 0, "
                "'n_sweeps': 0}.",
                UserWarning,
                stacklevel=2,
            )
        elif report.drawn_distance > _WRONG * report.drawn_floor:
            warnings.warn(
                f"The prior was trained with samples of {name!r} ({share:.0%} is left of them) "
                f"that do not follow it: effective beta {report.beta_drawn:.3g} +- "
                f"{report.beta_drawn_se:.2g} (1 is right), distance {report.drawn_distance:.2f} "
                f"(by chance {report.drawn_floor:.2f}). More sweeps (n_sweeps) would repair them.",
                UserWarning,
                stacklevel=2,
            )

    def _warn(self, report: NegativePhaseReport) -> None:
        tempers = self.module.negative_phase.sampler.name.endswith("tempering")
        other = "" if tempers else "sampler='parallel_tempering', "
        warnings.warn(
            f"The prior's chains do not mix: energy gap {report.energy_gap:+.1f} "
            f"(se {report.energy_gap_se:.1g}) nats, drift of log Z {report.log_z_drift:+.1f} "
            f"nats. The prior's gradient is biased. Use {other}more sweeps "
            "(sampler_options={'n_sweeps': 10}) or a smaller plan_kwargs={'bm_lr': ...}. See "
            "docs/training.md.",
            UserWarning,
            stacklevel=2,
        )


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x if x.layout == torch.strided else x.to_dense()
