"""Words of the command line of small pretraining runs."""

TOY_RUN = [
    "--method=toy",
    "--device=cpu",
    "--data.num_workers=0",
    "--log.every=1",
    "--log.tensorboard=false",
    "--log.sentinel_every=0",
    "--optim.batch_per_gpu=4",
    "--optim.base_lr=0.1",
    "--optim.warmup_epochs=1",
]

CODEMAE_RUN = [
    "--method=codemae",
    "--method.encoder.arch=hivit_tiny",
    "--method.encoder.img_size=32",
    "--method.decoder.dim=32",
    "--method.decoder.depth=1",
    "--method.decoder.num_heads=2",
    "--method.okd.enabled=false",
    "--device=cpu",
    "--data.num_workers=0",
    "--log.every=1",
    "--log.tensorboard=false",
    "--log.sentinel_every=0",
]
