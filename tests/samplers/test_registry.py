from importlib.metadata import EntryPoint

import pytest

import scvi_qbm
from scvi_qbm.samplers import registry
from scvi_qbm.samplers.exact import Exact


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def test_names():
    assert {"exact", "gibbs", "parallel_tempering"} <= set(scvi_qbm.list_samplers())
    for name in ("exact", "gibbs", "parallel_tempering"):
        assert scvi_qbm.get_sampler(name).name == name


def test_unknown_name_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'metropolis'.*exact, .*gibbs, .*parallel_tempering"):
        scvi_qbm.get_sampler("metropolis")


def test_unknown_option_lists_the_options():
    with pytest.raises(TypeError, match=r"n_sweep'.*n_chains, n_sweeps, n_burn_in"):
        scvi_qbm.get_sampler("gibbs", n_sweep=3)


def test_register_class_function_and_string():
    scvi_qbm.register_sampler("mine", Exact)
    scvi_qbm.register_sampler("made", lambda: Exact())
    scvi_qbm.register_sampler("later", "scvi_qbm.samplers.exact:Exact")
    for name in ("mine", "made", "later"):
        assert name in scvi_qbm.list_samplers()
        assert isinstance(scvi_qbm.get_sampler(name), Exact)


def test_register_refuses():
    with pytest.raises(ValueError, match="exists"):
        scvi_qbm.register_sampler("gibbs", Exact)
    scvi_qbm.register_sampler("gibbs", Exact, overwrite=True)
    assert isinstance(scvi_qbm.get_sampler("gibbs"), Exact)
    with pytest.raises(ValueError, match="module:attribute"):
        scvi_qbm.register_sampler("x", "no_colon")
    with pytest.raises(TypeError, match="module:attribute"):
        scvi_qbm.register_sampler("x", 3)


def test_instances_pass_through():
    sampler = Exact()
    assert scvi_qbm.get_sampler(sampler) is sampler
    with pytest.raises(TypeError, match="instance"):
        scvi_qbm.get_sampler(sampler, n_chains=3)


def test_plugins(monkeypatch):
    group = registry.ENTRY_POINT_GROUP
    points = [
        EntryPoint("plugged", "scvi_qbm.samplers.exact:Exact", group),
        EntryPoint("broken", "no_such_package:Sampler", group),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert isinstance(scvi_qbm.get_sampler("plugged"), Exact)
    rows = {row.name: row for row in registry.describe_samplers()}
    assert rows["plugged"].guarantee == "exact"
    assert "no_such_package" in rows["broken"].summary
    with pytest.raises(ModuleNotFoundError):
        scvi_qbm.get_sampler("broken")
