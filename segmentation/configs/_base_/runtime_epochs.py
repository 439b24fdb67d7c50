_base_ = ["./runtime.py"]
log_processor = dict(by_epoch=True)
