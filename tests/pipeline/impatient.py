"""`gr_jax.train`, for tests in which a host waits in vain for what another has written."""

from gr_jax import gin_config, train
from gr_jax.pipeline import _workspace

_workspace._PATIENCE = 0.5

if __name__ == "__main__":
    gin_config.run_main(train.main)
