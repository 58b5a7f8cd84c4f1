"""What stands between scvi-tools' tests and QBMVI: three tables and a pytest plugin.

The plugin puts QBMVI where the tests import SCVI from, and marks what does not apply. The table
of edits is used by run.py, on a copy of the tests.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict

import pytest

SCVI = "tests/model/test_scvi.py"
SCANVI = "tests/model/test_scanvi.py"
MINIFIED = "tests/model/test_models_with_minified_data.py"
CALLBACKS = "tests/train/test_callbacks.py"

FILES = (
    SCVI,
    SCANVI,
    MINIFIED,
    "tests/model/test_differential_abundance.py",
    "tests/model/test_differential.py",
    CALLBACKS,
    "tests/criticism/test_criticism.py",
    "tests/module/test_vae.py",
)

# (file, text, replacement, reason); run.py stops if the text is not there any more.
EDITS = (
    (
        SCVI,
        '"lr-Adam" in m.history',
        '"lr-Adam/vae" in m.history',
        "the optimiser has two named parameter groups, and Lightning names the group",
    ),
    (
        SCVI,
        "var_activation=Softplus(), use_observed_lib_size=False)",
        'var_activation=Softplus(), use_observed_lib_size=False, gene_likelihood="zinb")',
        "the test reads the drop-out of SCVI's default likelihood, zinb; QBMVI's default is nb",
    ),
    (
        SCVI,
        'size_factor_key="size_factor"',
        'size_factor_key=None if gene_likelihood == "normal" else "size_factor"',
        "a normal likelihood has a free mean here, and a size factor is refused on purpose",
    ),
    (
        SCVI,
        """    with pytest.raises(ValueError):
        model.train(1, train_size=1.0)
    with pytest.raises(ValueError):
        model.train(1, train_size=1.0, batch_size=128)
""",
        "    model.train(1, train_size=1.0)\n",
        "a last minibatch of one cell is left out, rather than an error of batch normalisation",
    ),
    (
        SCVI,
        """    with pytest.raises(ValueError):
        model.train(1, train_size=0.9)  # np.ceil(n_cells * 0.9) % 128 == 1
""",
        "    model.train(1, train_size=0.9)\n",
        "the same",
    ),
    (
        MINIFIED,
        'common_err_msg.format("VAEMixin.get_elbo")',
        'common_err_msg.format("LikelihoodMixin.get_elbo")',
        "the message names the class",
    ),
    (
        SCANVI,
        "module.classifier.classifier[0].fc_layers[0][0].weight",
        "module.prior.U",
        "the classifier is the machine's label units",
    ),
    (
        SCANVI,
        """    # test classifier unfrozen
    model2 = SCANVI.load_query_data(adata2, dir_path, freeze_classifier=False)
    model2._unlabeled_indices = np.arange(adata2.n_obs)
    model2._labeled_indices = []
    model2.train(max_epochs=1)
    class_query_weight = (
        model2.module.prior.U.detach().cpu().numpy()
    )
    class_ref_weight = (
        model.module.prior.U.detach().cpu().numpy()
    )
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(class_query_weight, class_ref_weight, atol=1e-07)
""",
        "",
        "a query leaves the reference's label units as they are, and adds units of its own",
    ),
    (
        SCANVI,
        """    # Test without label groups
    scanvi_model = SCANVI.from_scvi_model(
        m, "label_0", labels_key="labels", use_labels_groups=False
    )
    scanvi_model.train(1)
""",
        "",
        "groups of labels are given as a second column of labels, not as an option",
    ),
    (
        SCANVI,
        ", linear_classifier=True\n    )\n\n    model.train(\n        max_epochs=1,\n"
        "        train_size=0.5,\n        check_val_every_n_epoch=1,\n"
        "        n_samples_per_label=10,\n",
        "\n    )\n\n    model.train(\n        max_epochs=1,\n"
        "        train_size=0.5,\n        check_val_every_n_epoch=1,\n",
        "the classifier is linear, and all labelled cells are used",
    ),
    (
        MINIFIED,
        "model = cls(adata, n_latent=n_latent)",
        'model = cls(adata, n_latent=n_latent, gene_likelihood="zinb")',
        "the tests read the drop-out of SCVI's default likelihood, zinb; QBMVI's default is nb",
    ),
    (
        MINIFIED,
        'common_err_msg.format("VAE.loss")',
        'common_err_msg.format("QBMVAE.loss")',
        "the message names the class",
    ),
    (
        MINIFIED,
        """    scanvi_model = scvi.model.SCANVI.from_scvi_model(
        model, labels_key="labels", unlabeled_category="unknown"
    )
    scanvi_model.train()
    scanvi_model.train(
        1, check_val_every_n_epoch=1, train_size=0.5, plan_kwargs={"update_only_decoder": True}
    )
""",
        "",
        "SCANVI takes over the weights of an SCVI; its encoder is Gaussian",
    ),
    (
        MINIFIED,
        """    np.testing.assert_array_equal(latent_repr_new, latent_repr_orig)


def test_scvi_with_minified_adata_posterior_predictive_sample""",
        """    np.testing.assert_allclose(latent_repr_new, latent_repr_orig, rtol=1e-6)


def test_scvi_with_minified_adata_posterior_predictive_sample""",
        "the default embedding adds up in another order; probabilities are the same to the bit",
    ),
    (
        CALLBACKS,
        "for k, v in current_state_dict.items():\n",
        "for k, v in current_state_dict.items():\n"
        '                if k.startswith("prior."):\n'
        "                    continue\n",
        "the prior is fitted once more when training ends; checkpoints have it as it was before",
    ),
)

# (regular expression on the test's id, reason); the first that matches counts.
NOT_APPLICABLE = (
    (
        r"test_scvi_get_latent_rep_backwards_compat",
        "mimics SCVI modules of before 0.15, which returned Gaussian qzm and qzv; QBMVI has none",
    ),
    (
        r"test_scvi_no_anndata",
        "scvi-tools allows adata=None without a registry to classes named SCVI and GIMVI only; "
        "QBMVI takes registry=",
    ),
    (r"test_backwards_compatible_loading|test_backup_url", "loads SCVI models from the internet"),
    (r"mlflow", "needs scvi-tools' own MLflow server"),
    (
        r"test_linear_classifier_scanvi|test_scanvi_(pre_)?logits",
        "looks into SCANVI's classifier; label units are none",
    ),
    (r"test_scanvi_interpretability", "needs captum or shap, through SCANVI's classifier"),
    (r"minified_data.py::test_scanvi_", "another class: SCANVI"),
    (r"test_differential_abundance_not_implemented", "another class: AmortizedLDA"),
    (
        r"\[.*(SCANVI|TOTALVI|MULTIVI|SCVIVA|TOTALANVI)",
        "another class: SCANVI, TOTALVI, MULTIVI, SCVIVA or TOTALANVI",
    ),
)

# scvi-tools runs these only on demand, and then nothing else.
_ON_DEMAND = ("need --optional", "need ---custom-dataloader-tests")


def pytest_configure(config):
    import scvi.criticism
    import scvi.external  # its classes must derive from SCVI itself, hence first
    import scvi.model
    import scvi.module

    import scvi_qbm
    from scvi_qbm.module import QBMVAE

    scvi.model.SCVI = scvi_qbm.QBMVI
    scvi.model.SCANVI = scvi_qbm.QBMANVI
    scvi_qbm.QBMANVI.from_scvi_model = scvi_qbm.QBMANVI.from_qbmvi_model
    scvi.module.VAE = QBMVAE
    config.pluginmanager.register(_Results(os.environ["PEER_RESULTS"]))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    for item in items:
        item.own_markers = [
            mark
            for mark in item.own_markers
            if not (mark.name == "skip" and mark.kwargs["reason"].startswith(_ON_DEMAND))
        ]
        for pattern, reason in NOT_APPLICABLE:
            if re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.skip(reason=f"n/a: {reason}"), append=False)
                break


@pytest.fixture(autouse=True)
def _settings_back():
    """test_scvi_num_workers leaves three workers to all tests after it."""
    from scvi import settings

    names = ("dl_num_workers", "dl_persistent_workers", "logging_dir")
    before = {name: getattr(settings, name) for name in names}
    yield
    for name, value in before.items():
        setattr(settings, name, value)


class _Results:
    def __init__(self, path):
        self.path = path
        self.results = defaultdict(dict)

    def pytest_collectreport(self, report):
        if report.failed:
            self.results[report.nodeid] = {"outcome": "failed", "reason": "collection"}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or not report.passed:
            reason = report.longrepr[2] if report.skipped else ""
            self.results[report.nodeid] = {
                "outcome": report.outcome,
                "reason": reason.removeprefix("Skipped: "),
            }

    def pytest_sessionfinish(self):
        with open(self.path, "w") as f:
            json.dump(self.results, f)
