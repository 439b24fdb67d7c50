# The head of the official configs: four convolutions with synchronised batch norm, and GIoU on decoded boxes.
_base_ = ["./faster-rcnn_itpn.py"]

model = dict(
    roi_head=dict(
        bbox_head=dict(
            type="Shared4Conv1FCBBoxHead",
            conv_out_channels=256,
            norm_cfg=dict(type="SyncBN", requires_grad=True),
            reg_decoded_bbox=True,
            loss_bbox=dict(_delete_=True, type="GIoULoss", loss_weight=10.0),
        )
    )
)
