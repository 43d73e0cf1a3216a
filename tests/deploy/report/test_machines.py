import msgspec
import pytest

from deploy.errors import UserError
from deploy.record import Benched, BundleId, MachineBench
from deploy.report import read_results, to_html, to_markdown, write_report
from deploy.report.machines import add_machine, machine_rows, read_bench
from tests.deploy.report.example import ENVIRONMENT, example, measurement

PI = msgspec.structs.replace(
    ENVIRONMENT, cpu="Cortex-A76, Raspberry <Pi> 5", architecture="aarch64"
)


def benched(*names, **changes):
    """What another machine printed of some variants of the example."""
    variants = {variant.name: variant for variant in example().variants}
    seen = measurement()
    models = tuple(
        Benched(
            path=f"{name}.lship",
            sha256=variants[name].sha256,
            bundle=BundleId(name=name, version="1.0.0", digest="0" * 64),
        )
        for name in names
    )
    seen = msgspec.structs.replace(
        seen, environment=PI, latencies=seen.latencies[: len(names)], **changes
    )
    return MachineBench(models=models, measurement=seen)


def written(path, bench):
    path.write_bytes(msgspec.json.encode(bench))
    return path


def test_what_bench_prints_is_read_back(tmp_path):
    bench = benched("baseline", "int8")
    assert read_bench(written(tmp_path / "pi.json", bench)) == bench


def test_models_are_known_by_their_bytes_whatever_they_came_in():
    (machine,) = add_machine(example(), "pi4", benched("baseline", "int8")).machines
    assert (machine.name, machine.environment.architecture) == ("pi4", "aarch64")
    assert [seen.variant for seen in machine.times] == ["baseline", "int8"]
    assert machine.times[1].p50_ms == measurement().latencies[1].p50_ms.value


def test_a_speedup_over_anything_but_the_baseline_is_dropped():
    (machine,) = add_machine(example(), "pi4", benched("int8", "pruned")).machines
    assert [seen.speedup for seen in machine.times] == [None, None]
    (machine,) = add_machine(example(), "pi4", benched("baseline", "pruned")).machines
    assert [seen.speedup for seen in machine.times] == [1.0, 1.007]


def test_a_model_of_another_run_is_refused():
    bench = benched("baseline", "int8")
    other = msgspec.structs.replace(bench.models[1], sha256="0" * 64)
    bench = msgspec.structs.replace(bench, models=(bench.models[0], other))
    with pytest.raises(UserError, match=r"pi4: int8\.lship has not the bytes of any variant"):
        add_machine(example(), "pi4", bench)


def test_adding_a_machine_again_replaces_it():
    results = add_machine(example(), "pi4", benched("baseline"))
    results = add_machine(results, "jetson", benched("int8"))
    results = add_machine(results, "pi4", benched("baseline", "pruned"))
    assert [(m.name, len(m.times)) for m in results.machines] == [("jetson", 1), ("pi4", 2)]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"models": [], "measurement": 1}', b"\xff"])
def test_what_is_no_measurement_is_refused(tmp_path, content):
    (tmp_path / "pi.json").write_bytes(content)
    with pytest.raises(UserError, match=r"pi\.json: is not what lightship bench --json prints"):
        read_bench(tmp_path / "pi.json")


def test_more_models_than_latencies_are_refused(tmp_path):
    bench = benched("baseline")
    bench = msgspec.structs.replace(bench, models=bench.models * 2)
    with pytest.raises(UserError, match="names 2 models but has 1 latencies"):
        read_bench(written(tmp_path / "pi.json", bench))


def test_a_measurement_larger_than_any_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "pi.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    with pytest.raises(UserError, match=r"pi\.json: has more than the 16,777,216 bytes"):
        read_bench(tmp_path / "pi.json")


def test_a_missing_measurement_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot be read"):
        read_bench(tmp_path / "none.json")


def test_markdown_shows_other_machines_only_where_there_are_any():
    assert "Other machines" not in to_markdown(example())
    text = to_markdown(
        add_machine(example(), "pi|4", benched("baseline", "int8", warnings=("it was busy",)))
    )
    table = text.partition("## Other machines\n\n")[2].partition("\n\n")[0].splitlines()
    assert len(table) == 4
    assert {row.replace("\\|", "").count("|") for row in table} == {9}
    assert table[3].startswith("| pi\\|4 | int8 | 158 µs".replace(" µs", "\u202fµs"))
    assert "warning: it was busy" in text


def test_html_shows_other_machines_and_escapes_their_names():
    pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    assert "Other machines" not in to_html(example())
    page = to_html(add_machine(example(), "<pi>", benched("baseline", "int8")))
    section = page.partition('aria-labelledby="machines"')[2].partition("</section>")[0]
    assert section.count("<tr>") == 3
    assert "&lt;pi&gt;" in section
    assert "Raspberry &lt;Pi&gt; 5" in section


def test_machines_survive_results_json(tmp_path):
    pytest.importorskip("jinja2", reason="the extra 'report' is not installed")
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    results = add_machine(example(), "pi4", benched("baseline", "int8"))
    write_report(results, tmp_path)
    assert read_results(tmp_path / "results.json") == results
    assert len(machine_rows(results)) == 2
