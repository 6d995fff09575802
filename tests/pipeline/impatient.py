"""`gr_jax.train`, for tests in which a host waits in vain for what another has written."""

from gr_jax import distributed, gin_config, train

distributed._FILE_PATIENCE = 0.5

if __name__ == "__main__":
    gin_config.run_main(train.main)
