# config.yaml, checked before Snakemake reads it and completed afterwards; a mistake ends here, before any job.
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

PACKAGE = Path(workflow.basedir) / "workflow"
sys.path.insert(0, str(PACKAGE))

from quantharm.config import configuration, validation
from quantharm.common.errors import UserError

LEFT_OUT_FILE = os.environ.get("QUANTHARM_LEFT_OUT")  # of the run whose end this is (left_out.smk)

if not LEFT_OUT_FILE:  # else the configuration is that run's, and complete
    try:
        validation.check_config_file(Path("config.yaml"))
    except UserError as error:
        raise WorkflowError(str(error)) from None

    configfile: "config.yaml"

    try:
        config = configuration.complete(config, PACKAGE / "schemas" / "config.schema.yaml")
    except UserError as error:
        raise WorkflowError(str(error)) from None
