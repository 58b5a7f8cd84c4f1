"""What samplers, log Z and the prior share: tempered chains, their kernels and threads.

:func:`start` makes chains, :func:`run` advances them; the file ``chains.py`` says what they are.
The same on a device: ``torch_chains``, which is not imported here, as it needs torch.
"""

from .chains import Chains as Chains
from .chains import anneal as anneal
from .chains import collect as collect
from .chains import mixing as mixing
from .chains import pack as pack
from .chains import run as run
from .chains import start as start
from .chains import unpack as unpack
from .threads import checked_threads as checked_threads
from .threads import default_threads as default_threads
from .threads import one_blas_thread as one_blas_thread
from .threads import pool as pool
from .threads import processors as processors
from .threads import spread as spread
