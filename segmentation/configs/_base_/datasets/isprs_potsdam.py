# python datasets/prepare.py isprs_potsdam --root DIR --out INDEX_DIR --tile 512 --stride 256
_base_ = ["./isprs.py"]
isprs_potsdam_index = "{{$ISPRS_POTSDAM_INDEX:data/isprs_potsdam}}"
dataset_name = "ISPRS Potsdam test"
train_dataloader = dict(dataset=dict(index=isprs_potsdam_index))
val_dataloader = dict(dataset=dict(index=isprs_potsdam_index))
test_dataloader = dict(dataset=dict(index=isprs_potsdam_index))
