"""The filters of a job: what makes a sample be replaced by one of the shard's reserve.

NaN and infinity are always refused; the filters here are chosen in the job's file.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from latentry.contract.errors import BadRequest, NotFound, listed
from latentry.contract.files import sha256_regular
from latentry.synthesis.filters.classifier import ClassifierOptions
from latentry.synthesis.filters.constant import ConstantOptions
from latentry.synthesis.filters.duplicates import DuplicatesOptions
from latentry.synthesis.filters.judging import JudgeOptions
from latentry.synthesis.filters.python_function import PythonOptions

FilterOptions = Annotated[
    ConstantOptions | DuplicatesOptions | ClassifierOptions | PythonOptions,
    Field(discriminator="kind"),
]
FILTERS: dict[str, type[JudgeOptions]] = {
    "constant": ConstantOptions,
    "duplicates": DuplicatesOptions,
    "classifier": ClassifierOptions,
    "python": PythonOptions,
}


def file_hashes(options: Sequence[JudgeOptions]) -> dict[str, str]:
    """Return the SHA-256 of every file on which a verdict depends, by name.

    Raises:
        BadRequest: Two of them have the same name.
        NotFound: The function of a filter is missing, or a file cannot be read.
    """
    paths = {path.absolute() for option in options for path in option.files()}
    try:
        hashes = {path.name: sha256_regular(path) for path in sorted(paths)}
    except OSError as error:
        raise NotFound(f"{error.filename} cannot be read: {error.strerror}") from error
    if len(hashes) < len(paths):
        raise BadRequest(
            f"a job's files are told apart by their names, rename one: {listed(sorted(paths))}"
        )
    return hashes
