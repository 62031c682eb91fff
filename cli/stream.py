"""``latentry stream``."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from latentry.cli.common.console import AsJson, echo_json, progress_bar
from latentry.cli.common.exit_codes import EXIT_INTERRUPTED
from latentry.cli.common.samples import (
    ClassOption,
    CountOption,
    FormatOption,
    ImageOption,
    Model,
    PsiOption,
    ResizeOption,
    RetryOption,
    SampleOptions,
    SeedsOption,
    SetOption,
    count_samples,
    file_format_from_text,
    json_from_info,
)
from latentry.cli.common.server_options import open_client, talks_to_server
from latentry.cli.common.usage import check_folder, naming_options
from latentry.clients.server import DEFAULT_SERVER, Server
from latentry.contract.wire import MAX_STREAMED_SAMPLES


@talks_to_server
def stream(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for one file a sample.")],
    seeds: SeedsOption = None,
    n: CountOption = None,
    settings: SetOption = None,
    class_label: ClassOption = None,
    psi: PsiOption = None,
    image: ImageOption = None,
    resize: ResizeOption = False,
    format: FormatOption = "png",
    chunk_size: Annotated[
        int | None, typer.Option(min=1, max=MAX_STREAMED_SAMPLES, help="Samples in a chunk.")
    ] = None,
    server: Server = DEFAULT_SERVER,
    retry_for_s: RetryOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw many samples and write each as it comes; a broken stream goes on by itself.

    Ctrl-C stops it; what has come stays.

    For example:

        latentry stream digits --seeds 0-9999 --class 0-9 --out digits/

        latentry stream faces --n 500 --psi 0.7 --out faces/ --retry-for-s 60
    """
    file_format = file_format_from_text(format)
    check_folder("--out", out)
    options = SampleOptions(seeds, n, settings or (), class_label, psi, image or (), resize)
    delivered = 0
    with open_client(server, retry_for_s=retry_for_s) as client, naming_options():
        spec = client.info(model).spec
        arguments = options.arguments(spec)
        total = count_samples(spec, arguments)
        chunks = client.stream(
            model,
            **arguments,
            format=file_format,
            chunk_size=chunk_size,
            resume=True,
        )
        try:
            with closing(chunks), progress_bar(model, total, quiet=as_json) as advance:
                for chunk in chunks:
                    chunk.save(out)
                    delivered += len(chunk)
                    advance(len(chunk))
        except KeyboardInterrupt:
            typer.echo(f"stopped: {delivered} of {total} samples are in {out}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        info = client.info(model)
    if as_json:
        echo_json({**json_from_info(info), "delivered": delivered, "out": str(out)})
    else:
        typer.echo(f"{delivered} samples of {model} in {out}")
