# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start llama.cpp's own HTTP server from the xllamacpp wheel, with the options of the llama-server program.

The wheel has no command line. This gives it the one that llama.cpp's release binary has, as far as our role uses it,
so that both are started with the same arguments. The API key comes from LLAMA_API_KEY, as with llama-server.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import sysconfig
from pathlib import Path
from typing import Any

POOLINGS = ("none", "mean", "cls", "last", "rank")  # in the order of llama.h's enum llama_pooling_type, from 0
TEMP_IS_GIVEN = 1 << 6  # of llama.cpp's enum common_params_sampling_config


def fail(message: str) -> None:
    """End with one line that the service's log and the playbook show."""
    print(f"llama_server: error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def load_openmp() -> None:
    """Start again with the OpenMP library of the environment when the system has no libgomp.

    The loader searches LD_LIBRARY_PATH as it was when the process began, hence the second exec of the same process.
    """
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        bundled = Path(sysconfig.get_path("purelib")) / "cmeel.prefix" / "lib"
        paths = os.environ.get("LD_LIBRARY_PATH", "").split(":")
        if not (bundled / "libgomp.so.1").exists() or str(bundled) in paths:
            fail("the OpenMP library libgomp.so.1 is missing: install your distribution's package libgomp1")
        os.environ["LD_LIBRARY_PATH"] = ":".join([str(bundled), *filter(None, paths)])
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606  the same program, no shell


def positive(text: str) -> int:
    """Parse a whole number above zero."""
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the options; an unknown or shortened one ends the program, as with llama-server."""
    parser = argparse.ArgumentParser(prog="llama_server", allow_abbrev=False, description=__doc__)
    parser.add_argument("--model", required=True, help="GGUF file; of a split model the first part")
    parser.add_argument("--alias", required=True, help="model name in the API")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=positive, required=True)
    parser.add_argument("--ctx-size", type=int, default=0, help="tokens of all slots together; 0 takes the model's own")
    parser.add_argument("--parallel", type=positive, default=1, help="requests answered at once, each with its slot")
    parser.add_argument("--threads", type=int, default=-1, help="threads that generate; -1 lets llama.cpp choose")
    parser.add_argument("--threads-http", type=int, default=-1, help="threads that answer HTTP")
    parser.add_argument("--batch-size", type=positive)
    parser.add_argument("--ubatch-size", type=positive)
    parser.add_argument("--n-predict", type=int, help="most tokens of one answer; -1 sets no limit")
    parser.add_argument("--temp", type=float, help="temperature of requests that name none; default the model's")
    parser.add_argument("--n-gpu-layers", type=int)
    parser.add_argument("--timeout", type=positive, help="seconds that a connection may stand still")
    parser.add_argument("--chat-template", help="name or text of a chat template in place of the model's own")
    parser.add_argument(
        "--jinja", action=argparse.BooleanOptionalAction, default=True, help="the model's chat template"
    )
    parser.add_argument("--embeddings", action="store_true", help="serve embeddings only")
    parser.add_argument(
        "--pooling", choices=POOLINGS, help="how a text's tokens become one vector; default the model's"
    )
    parser.add_argument("--webui", action=argparse.BooleanOptionalAction, default=True, help="llama.cpp's chat page")
    parser.add_argument("--metrics", action="store_true", help="Prometheus metrics")
    return parser.parse_args(argv)


def fill(params: Any, options: argparse.Namespace, api_key: str) -> None:
    """Set the library's parameters from the options."""
    params.model.path = options.model
    params.model_alias = {options.alias}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.cpuparams.n_threads = options.threads
    params.n_threads_http = options.threads_http
    params.use_jinja = options.jinja
    params.embedding = options.embeddings
    params.ui = options.webui
    params.endpoint_metrics = options.metrics
    params.endpoint_slots = False  # shows other users' prompts
    params.offline = True  # the model is on disk; nothing may be fetched at start
    if api_key:
        params.api_keys = [api_key]
    if options.chat_template is not None:
        params.chat_template = options.chat_template
    if options.n_gpu_layers is not None:
        params.n_gpu_layers = options.n_gpu_layers
    if options.temp is not None:
        params.sampling.temp = max(options.temp, 0.0)
        params.sampling.user_sampling_config |= TEMP_IS_GIVEN  # else what the model file says would come before it
    if options.n_predict is not None:
        params.n_predict = options.n_predict
    if options.batch_size is not None:
        params.n_batch = options.batch_size
    if options.ubatch_size is not None:
        params.n_ubatch = options.ubatch_size
    if options.pooling is not None:
        params.pooling_type = POOLINGS.index(options.pooling)
    if options.timeout is not None:
        params.timeout_read = params.timeout_write = options.timeout


def main() -> int:
    options = arguments()
    load_openmp()
    model = Path(options.model)
    if not model.is_file():
        fail(f"the model file {model} does not exist")
    import xllamacpp  # noqa: PLC0415  only after the OpenMP library is there

    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    params = xllamacpp.CommonParams()
    fill(params, options, os.environ.get("LLAMA_API_KEY", ""))
    try:
        server = xllamacpp.Server(params)
    except Exception as error:
        fail(f"llama.cpp did not start with {model}: {error}")
    print(f"llama_server: {options.alias} answers on {server.listening_address}", flush=True)
    signal.sigwait(stop)
    print("llama_server: stopped on request", flush=True)
    # llama.cpp's threads may be in the middle of an answer; leaving by _exit ends them all at once.
    os._exit(0)


if __name__ == "__main__":
    raise SystemExit(main())
