"""The commands that need no TensorFlow: from evaluate to doctor, on files and bundles."""

from __future__ import annotations

import click

from deploy.cli.bundling import bundle_command, convert_command, selftest_command
from deploy.cli.checking import check_command
from deploy.cli.command import Commands
from deploy.cli.evaluating import evaluate_command
from deploy.cli.examining import doctor_command
from deploy.cli.packing import pack_command, unpack_command
from deploy.cli.predicting import predict_command
from deploy.cli.reporting import report_command
from deploy.cli.serving import serve_command
from deploy.cli.timing import audit_command, bench_command
from deploy.cli.widths import widths_command


@click.group(cls=Commands)
@click.version_option(package_name="lightship")
def cli() -> None:
    """Measure and ship models with numpy and ONNX Runtime alone."""


for _command in (
    evaluate_command,
    bench_command,
    check_command,
    audit_command,
    widths_command,
    report_command,
    bundle_command,
    convert_command,
    pack_command,
    unpack_command,
    selftest_command,
    predict_command,
    serve_command,
    doctor_command,
):
    cli.add_command(_command)
